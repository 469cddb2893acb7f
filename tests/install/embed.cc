/* SPDX-License-Identifier: MIT */
/* An embedder in C++: the public headers and the linkage of what they declare. */
#include <busbar/engine/device.h>

#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

static bb_error err;

static void must(int result)
{
    if (result != BB_OK) {
        std::fprintf(stderr, "%s: %s\n", bb_result_name(result), err.text);
        std::exit(1);
    }
}

int main()
{
    bb_engine *engine;
    bb_ctx *ctx;
    bb_space *space;
    bb_space_config config{};
    config.name = "memory";

    must(bb_engine_create(nullptr, &engine, &err));
    must(bb_ctx_attach(engine, "main", &ctx, &err));
    must(bb_space_create(ctx, &config, &space, &err));
    std::vector<std::thread> vcpus;
    for (int i = 0; i < 4; i++) {
        vcpus.emplace_back([engine, space] {
            bb_ctx *mine;
            bb_error error;
            uint64_t value = 0;
            if (bb_ctx_attach(engine, "vcpu", &mine, &error) != BB_OK ||
                bb_mmio_read(mine, space, 0x1000, 4, &value) != BB_E_DECODE ||
                value != 0xffffffff || bb_ctx_detach(mine, &error) != BB_OK) {
                std::abort();
            }
        });
    }
    for (auto &vcpu : vcpus) {
        vcpu.join();
    }
    must(bb_ctx_detach(ctx, &err));
    must(bb_engine_destroy(engine, &err));
    std::puts("nothing was there");
}

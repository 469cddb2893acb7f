/* SPDX-License-Identifier: MIT */
/* Serial output: in order and complete, dropped and counted where nobody reads, never waited for.
 */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "../../vmm/serial_io.h"

enum { PRODUCERS = 4, BYTES_EACH = 10000 };

static char path[64];

static struct bb_serial *open_file(const char *to)
{
    struct bb_serial_config config = {.kind = BB_SERIAL_FILE, .path = to};
    struct bb_serial_hooks hooks = {0};
    struct bb_serial *serial;
    cr_assert_eq(bb_serial_open(&config, &serial, NULL), BB_OK);
    cr_assert_eq(bb_serial_start(serial, &hooks, NULL), BB_OK);
    return serial;
}

static void make_path(void)
{
    strcpy(path, "/tmp/busbar-serial-XXXXXX");
    int fd = mkstemp(path);
    cr_assert_geq(fd, 0);
    close(fd);
}

struct producer {
    struct bb_serial *serial;
    unsigned number;
};

/* A byte is the producer in the high bits, a rolling count in the low six. */
static void *produce(void *arg)
{
    struct producer *p = arg;
    for (unsigned i = 0; i < BYTES_EACH; i++) {
        bb_serial_put(p->serial, (uint8_t)(p->number << 6 | i % 64));
    }
    return NULL;
}

Test(serial, bytes_of_several_threads_all_arrive_each_in_its_order)
{
    pthread_t threads[PRODUCERS];
    struct producer producers[PRODUCERS];
    unsigned seen[PRODUCERS] = {0};
    make_path();
    struct bb_serial *serial = open_file(path);
    for (unsigned i = 0; i < PRODUCERS; i++) {
        producers[i] = (struct producer){serial, i};
        cr_assert_eq(pthread_create(&threads[i], NULL, produce, &producers[i]), 0);
    }
    for (unsigned i = 0; i < PRODUCERS; i++) {
        pthread_join(threads[i], NULL);
    }
    bb_serial_stop(serial);
    cr_assert_eq(bb_serial_dropped(serial), 0u);
    bb_serial_close(serial);

    int fd = open(path, O_RDONLY);
    uint8_t byte;
    while (read(fd, &byte, 1) == 1) {
        unsigned number = byte >> 6;
        cr_assert_eq(byte % 64, seen[number] % 64);
        seen[number]++;
    }
    close(fd);
    unlink(path);
    for (unsigned i = 0; i < PRODUCERS; i++) {
        cr_assert_eq(seen[i], (unsigned)BYTES_EACH);
    }
}

Test(serial, output_that_nobody_reads_is_dropped_counted_and_does_not_hold_up_the_stop)
{
    const unsigned bytes = 400000; /* more than a pipe and the ring take */
    struct timespec began, ended;
    make_path();
    unlink(path);
    cr_assert_eq(mkfifo(path, 0600), 0);
    int reader = open(path, O_RDONLY | O_NONBLOCK);
    struct bb_serial *serial = open_file(path);
    for (unsigned i = 0; i < bytes; i++) {
        bb_serial_put(serial, 'x');
    }
    clock_gettime(CLOCK_MONOTONIC, &began);
    bb_serial_stop(serial);
    clock_gettime(CLOCK_MONOTONIC, &ended);
    cr_assert_lt(ended.tv_sec - began.tv_sec, 5);
    uint64_t dropped = bb_serial_dropped(serial);
    cr_assert_gt(dropped, bytes / 2);
    /* What was neither dropped nor delivered was lost without a word. A write that was given up
     * half-way counts as dropped whole. */
    uint64_t received = 0;
    static char text[65536];
    for (ssize_t got; (got = read(reader, text, sizeof(text))) > 0;) {
        received += (uint64_t)got;
    }
    cr_assert(received + dropped >= bytes && received + dropped <= bytes + 4096,
              "%llu received, %llu dropped, %u sent", (unsigned long long)received,
              (unsigned long long)dropped, bytes);
    bb_serial_close(serial);
    close(reader);
    unlink(path);
}

Test(serial, a_file_that_cannot_be_made_is_refused_by_name)
{
    struct bb_serial_config config = {.kind = BB_SERIAL_FILE, .path = "/nonexistent/file"};
    struct bb_serial *serial;
    struct bb_error err;
    cr_assert_eq(bb_serial_open(&config, &serial, &err), BB_E_SYSTEM);
    cr_assert_not_null(strstr(err.text, "/nonexistent/file"));
}

Test(serial, stopping_twice_does_no_harm)
{
    struct bb_serial_config config = {.kind = BB_SERIAL_NONE};
    struct bb_serial_hooks hooks = {0};
    struct bb_serial *serial;
    cr_assert_eq(bb_serial_open(&config, &serial, NULL), BB_OK);
    cr_assert_eq(bb_serial_start(serial, &hooks, NULL), BB_OK);
    bb_serial_put(serial, 'x');
    bb_serial_stop(serial);
    bb_serial_stop(serial);
    bb_serial_close(serial);
}

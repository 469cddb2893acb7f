/* SPDX-License-Identifier: MIT */
/*
 * Linked to libbusbar: whose malloc does this process have? Exits 0 where malloc, free and the rest
 * are libc's, before and after the library has used its own allocator.
 */
#define _GNU_SOURCE
#include <busbar/base/heap.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int foreign(const char *name)
{
    Dl_info info;
    void *address = dlsym(RTLD_DEFAULT, name);
    if (address == NULL || dladdr(address, &info) == 0 ||
        strstr(info.dli_fname, "libc.so") == NULL) {
        fprintf(stderr, "%s is not libc's but of %s\n", name,
                address == NULL ? "nobody" : info.dli_fname);
        return 1;
    }
    return 0;
}

int main(void)
{
    static const char *const names[] = {"malloc",   "calloc",        "realloc",
                                        "free",     "aligned_alloc", "posix_memalign",
                                        "memalign", "valloc",        "malloc_usable_size"};
    struct bb_heap *heap;
    int bad = 0;

    if (bb_heap_create(NULL, &heap, NULL) != BB_OK) {
        return 1;
    }
    void *ours = bb_heap_alloc(heap, 1000);
    void *theirs = malloc(1000);
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        bad += foreign(names[i]);
    }
    /* jemalloc's own entry points must not be reachable either. */
    bad += dlsym(RTLD_DEFAULT, "mallocx") != NULL || dlsym(RTLD_DEFAULT, "mallctl") != NULL;
    free(theirs);
    bb_heap_free(heap, ours, 1000);
    bad += bb_heap_destroy(heap, NULL) != BB_OK;
    printf("malloc is libc's: %s\n", bad == 0 ? "yes" : "no");
    return bad != 0;
}

/* SPDX-License-Identifier: MIT */
/* The map, and what /proc says, for ram_fixture.h. */
#include "ram_fixture.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

struct fixture ram_fixture;

void ram_begin(void)
{
    fixture_begin(&ram_fixture);
}

void ram_end(void)
{
    fixture_end(&ram_fixture);
}

unsigned ram_descriptors(void)
{
    DIR *folder = opendir("/proc/self/fd");
    unsigned count = 0;

    cr_assert_not_null(folder);
    while (readdir(folder) != NULL) {
        count++;
    }
    closedir(folder);
    return count;
}

uint64_t ram_mapped_bytes(void)
{
    FILE *file = fopen("/proc/self/statm", "re");
    uint64_t pages = 0;

    cr_assert_not_null(file);
    cr_assert_eq(fscanf(file, "%" SCNu64, &pages), 1);
    fclose(file);
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

bool ram_flag(const void *at, const char *flag)
{
    FILE *file = fopen("/proc/self/smaps", "re");
    char line[512], wanted[8];
    bool inside = false, found = false;
    uintptr_t first, end;

    cr_assert_not_null(file);
    snprintf(wanted, sizeof(wanted), " %s ", flag);
    while (fgets(line, sizeof(line), file) != NULL) {
        if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " ", &first, &end) == 2) {
            inside = (uintptr_t)at >= first && (uintptr_t)at < end;
        } else if (inside && strncmp(line, "VmFlags:", 8) == 0) {
            found = strstr(line, wanted) != NULL;
        }
    }
    fclose(file);
    return found;
}

uint64_t ram_page(void)
{
    return (uint64_t)sysconf(_SC_PAGESIZE);
}

struct bb_region *ram_make(const struct bb_ram_config *config)
{
    struct bb_region *region = NULL;
    struct bb_error err = {0};
    int result = bb_ram_create(ram_fixture.ctx, config, &region, &err);

    cr_assert_eq(result, BB_OK, "%s", err.text);
    cr_assert_not_null(region);
    return region;
}

void ram_refused(const struct bb_ram_config *config, int code, const char *word)
{
    struct bb_region *const before = (void *)&ram_fixture;
    struct bb_region *region = before;
    struct bb_error err = {0};
    unsigned open_before = ram_descriptors();
    uint64_t mapped_before = ram_mapped_bytes();
    uint64_t heap_before = bb_heap_usage(ram_fixture.memory.heap).live_bytes;
    int result = bb_ram_create(ram_fixture.ctx, config, &region, &err);

    cr_assert_eq(result, code, "%s instead of %s for '%s': %s", bb_result_name(result),
                 bb_result_name(code), word, result != BB_OK ? err.text : "");
    cr_assert_eq(err.code, code);
    cr_assert_not_null(strstr(err.text, word), "'%s' does not say '%s'", err.text, word);
    cr_assert_eq(region, before, "the place was written to");
    cr_assert_eq(ram_descriptors(), open_before, "a descriptor is left open");
    cr_assert_leq(ram_mapped_bytes(), mapped_before + (UINT64_C(1) << 30), "still mapped");
    cr_assert_eq(bb_heap_usage(ram_fixture.memory.heap).live_bytes, heap_before);
}

int ram_signal_of_touching(volatile uint8_t *byte)
{
    pid_t child = fork();
    int status = 0;

    if (child == 0) {
        signal(SIGSEGV, SIG_DFL);
        signal(SIGBUS, SIG_DFL);
        *byte = 1;
        _exit(0);
    }
    cr_assert_eq(waitpid(child, &status, 0), child);
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

bool ram_is_zero(const uint8_t *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (bytes[i] != 0) {
            return false;
        }
    }
    return true;
}

int ram_numbered_file(uint64_t bytes)
{
    int fd = memfd_create("file", MFD_CLOEXEC);

    cr_assert_geq(fd, 0);
    cr_assert_eq(ftruncate(fd, (off_t)bytes), 0);
    for (uint64_t i = 0; i * ram_page() < bytes; i++) {
        cr_assert_eq(pwrite(fd, &i, 1, (off_t)(i * ram_page())), 1);
    }
    return fd;
}

/* SPDX-License-Identifier: MIT */
/* What /proc says of ram_host.h's questions. */
#include "ram_host.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

unsigned ram_host_descriptors(void)
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

uint64_t ram_host_mapped_bytes(void)
{
    FILE *file = fopen("/proc/self/statm", "re");
    uint64_t pages = 0;

    cr_assert_not_null(file);
    cr_assert_eq(fscanf(file, "%" SCNu64, &pages), 1);
    fclose(file);
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

bool ram_host_flag(const void *at, const char *flag)
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

/* SPDX-License-Identifier: MIT */
/* Reading boot files whole, and choosing their loader; see boot.h. */
#include "boot.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int read_all(int fd, struct bb_file *file)
{
    uint64_t done = 0;
    while (done < file->bytes) {
        ssize_t got = read(fd, file->data + done, file->bytes - done);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            return -errno;
        }
        if (got == 0) {
            return -ENODATA;
        }
        done += (uint64_t)got;
    }
    return 0;
}

int bb_file_read(const char *path, const char *what, uint64_t max_bytes, struct bb_file *file,
                 struct bb_error *err)
{
    struct stat st;
    int rc = BB_OK;
    *file = (struct bb_file){.path = path};

    /* O_NONBLOCK so that a FIFO without a writer doesn't hold us up. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        return bb_error_set(err, BB_E_SYSTEM, "can't open %s '%s': %s", what, path,
                            strerror(errno));
    }
    if (fstat(fd, &st) != 0) {
        rc = bb_error_set(err, BB_E_SYSTEM, "can't read %s '%s': %s", what, path, strerror(errno));
        goto out;
    }
    if (!S_ISREG(st.st_mode) || st.st_size <= 0) {
        rc = bb_error_set(err, BB_E_INVAL, "%s '%s' is %s: give a file", what, path,
                          S_ISREG(st.st_mode) ? "empty" : "not a regular file");
        goto out;
    }
    file->bytes = (uint64_t)st.st_size;
    if (file->bytes > max_bytes) {
        rc = bb_error_set(err, BB_E_RANGE,
                          "%s '%s' is larger than guest memory (%llu KiB of %llu KiB): "
                          "give more --memory",
                          what, path, (unsigned long long)((file->bytes + 1023) >> 10),
                          (unsigned long long)(max_bytes >> 10));
        goto out;
    }
    file->data = malloc(file->bytes);
    if (file->data == NULL) {
        rc = bb_error_set(err, BB_E_NOMEM, "no memory to read %s '%s'", what, path);
        goto out;
    }
    int failed = read_all(fd, file);
    if (failed != 0) {
        bb_file_free(file);
        rc = bb_error_set(err, BB_E_SYSTEM, "can't read %s '%s': %s", what, path,
                          failed == -ENODATA ? "it became shorter meanwhile" : strerror(-failed));
    }
out:
    close(fd);
    return rc;
}

void bb_file_free(struct bb_file *file)
{
    free(file->data);
    file->data = NULL;
    file->bytes = 0;
}

static int load(const struct bb_boot_config *config, const struct bb_file *kernel,
                const struct bb_file *initrd, struct bb_boot *boot, struct bb_error *err)
{
    if (bb_bzimage_probe(kernel)) {
        return bb_bzimage_load(config, kernel, initrd, boot, err);
    }
    if (bb_elf64_probe(kernel)) {
        return bb_elf64_load(config, kernel, initrd, boot, err);
    }
    if (bb_multiboot_probe(kernel)) {
        return bb_multiboot_load(config, kernel, initrd, boot, err);
    }
    return bb_error_set(err, BB_E_INVAL,
                        "kernel '%s' is neither a bzImage, nor a 64-bit x86 ELF (vmlinux), nor a "
                        "multiboot-1 image, or it is truncated",
                        kernel->path);
}

int bb_boot_load(const struct bb_boot_config *config, struct bb_boot *boot, struct bb_error *err)
{
    struct bb_file kernel = {0};
    struct bb_file initrd = {0};
    int rc = bb_file_read(config->kernel_path, "kernel", config->mem->bytes, &kernel, err);

    if (rc == BB_OK && config->initrd_path != NULL) {
        rc = bb_file_read(config->initrd_path, "initrd", config->mem->bytes, &initrd, err);
    }
    if (rc == BB_OK) {
        *boot = (struct bb_boot){0};
        rc = load(config, &kernel, &initrd, boot, err);
    }
    bb_file_free(&initrd);
    bb_file_free(&kernel);
    return rc;
}

/* SPDX-License-Identifier: MIT */
/*
 * The host's end of the serial port: standard input and output, a file, or nothing.
 *
 * A vCPU never waits for the host's output: bytes go into a ring, and a drain thread writes them.
 * When the ring is full (whoever reads our output has stopped) bytes are dropped and counted.
 * Where standard input is a terminal in whose foreground we are, it is put into raw mode (Ctrl-C
 * still ends the run) and restored by bb_serial_stop(), by exit(), and before a fatal signal kills
 * the process.
 *
 * Threads: bb_serial_put and bb_serial_room from any thread, at once; the others from one control
 * thread. One serial port runs in a process at a time: a process has one terminal, and from start
 * to stop a handler for SIGRTMIN + 1, by which threads are taken out of blocked reads and writes.
 */
#ifndef BUSBAR_VMM_SERIAL_IO_H
#define BUSBAR_VMM_SERIAL_IO_H

#include "../base/result.h"

enum bb_serial_kind { BB_SERIAL_STDIO, BB_SERIAL_FILE, BB_SERIAL_NONE };

struct bb_serial_config {
    enum bb_serial_kind kind;
    const char *path; /* BB_SERIAL_FILE: created, or emptied */
    bool to_stderr;   /* BB_SERIAL_STDIO: output goes to stderr, where stdout is taken by --json */
};

struct bb_serial;

/*
 * Opens it; no thread runs yet, the terminal is untouched. Returns BB_OK; BB_E_SYSTEM where the
 * file can't be made, with its name; BB_E_NOMEM.
 */
int bb_serial_open(const struct bb_serial_config *config, struct bb_serial **serial,
                   struct bb_error *err);

/* Called on the input thread only: `attach` first, `detach` last, both may be NULL. */
struct bb_serial_hooks {
    void (*attach)(void *opaque);
    /* Offers input; returns how many bytes were taken. The rest is offered again after
     * bb_serial_room(). */
    size_t (*input)(void *opaque, const uint8_t *bytes, size_t count);
    void (*detach)(void *opaque);
    void *opaque;
};

/*
 * Starts the drain thread, and for STDIO the input thread. Returns BB_OK, or BB_E_SYSTEM where
 * threads can't be made, and then none runs.
 */
int bb_serial_start(struct bb_serial *serial, const struct bb_serial_hooks *hooks,
                    struct bb_error *err);

/* Queues one byte of output. Lock-free, and never waits for the output. */
void bb_serial_put(struct bb_serial *serial, uint8_t byte);

/* There is room for input again. Lock-free; does not call back. */
void bb_serial_room(struct bb_serial *serial);

/*
 * Ends the threads, having written what is queued unless the output stays blocked for half a
 * second, and restores the terminal. Idempotent. bb_serial_close() also closes and frees.
 */
void bb_serial_stop(struct bb_serial *serial);
void bb_serial_close(struct bb_serial *serial);

/* Bytes dropped: the ring was full, or the output refused them. */
uint64_t bb_serial_dropped(const struct bb_serial *serial);

#endif

/* SPDX-License-Identifier: MIT */
/*
 * Serial output and input on the host; see serial_io.h.
 *
 * The ring, many producers and one consumer:
 *  1. A producer reserves a slot by moving `head` with a compare-and-swap, which it does only while
 *     head - tail is below the size: so the slot it gets is empty.
 *  2. It publishes the byte by storing BYTE_PRESENT | byte into the slot.
 *  3. The consumer takes slots in order while they are present, empties each, then moves `tail`.
 * A producer stopped between 1 and 2 holds back what is behind it, and no other producer until the
 * ring is full; then bytes are dropped. Nobody waits.
 */
#include "serial_io.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "../base/atomic.h"
#include "../base/bits.h"

enum {
    RING_SLOTS = 1 << 16, /* bytes of output that may be queued */
    BYTE_PRESENT = 0x100,
    CHUNK = 4096,
    INPUT_CHUNK = 256,
    STOP_PATIENCE_MS = 500,
    NUDGE_MS = 10,
};

/* Takes a thread of ours out of a blocking read or write. */
#define NUDGE_SIGNAL (SIGRTMIN + 1)

struct bb_serial {
    /* Immutable after open. */
    struct bb_serial_config config;
    int out_fd;
    bool out_owned;
    int out_wake_fd; /* eventfd: the drain thread has something to do */
    int in_wake_fd;  /* eventfd: likewise the input thread */
    struct bb_serial_hooks hooks;

    /* Control thread. */
    bool drain_runs, input_runs;
    pthread_t drain_thread, input_thread;
    bool nudge_installed;
    struct sigaction nudge_before; /* of NUDGE_SIGNAL */

    /* (a) Shared. */
    uint32_t stopping; /* control thread -> both threads */
    uint32_t abandon;  /* control thread -> drain thread: give up what is still to be written */
    uint64_t dropped;  /* any producer, and the drain thread */
    uint32_t asleep;   /* drain thread -> producers: it waits for out_wake_fd */
    uint64_t head __attribute__((aligned(64)));
    uint64_t tail __attribute__((aligned(64)));
    uint16_t slots[RING_SLOTS];
};

/*
 * The terminal that is in raw mode. One a process, because standard input is one, and because an
 * exit hook and a signal handler must find it.
 */
static struct {
    uint32_t active; /* (a) 1 while `saved` must be restored */
    struct termios saved;
    struct sigaction before[5];
} terminal;
static const int fatal_signals[] = {SIGABRT, SIGSEGV, SIGBUS, SIGILL, SIGFPE};

static void terminal_restore(void)
{
    /* Pairs with terminal_raw(): sees `saved`. Of several that restore, one does. */
    if (bb_xchg_acquire(&terminal.active, 0u) == 1) {
        tcsetattr(STDIN_FILENO, TCSANOW, &terminal.saved);
    }
}

static void restore_and_die(int signal_number)
{
    terminal_restore();
    signal(signal_number, SIG_DFL);
    raise(signal_number);
}

/* Raw mode, but Ctrl-C stays a signal. Only in the foreground: else tcsetattr would stop us. */
static void terminal_raw(void)
{
    static bool at_exit_registered;
    struct termios raw;
    struct sigaction action = {.sa_handler = restore_and_die};

    if (!isatty(STDIN_FILENO) || tcgetpgrp(STDIN_FILENO) != getpgrp() ||
        tcgetattr(STDIN_FILENO, &terminal.saved) != 0) {
        return;
    }
    raw = terminal.saved;
    raw.c_iflag &= ~(tcflag_t)(ICRNL | INLCR | IGNCR | IXON);
    raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO | IEXTEN);
    raw.c_cc[VMIN] = 1;
    raw.c_cc[VTIME] = 0;
    raw.c_cc[VSUSP] = _POSIX_VDISABLE;
    raw.c_cc[VQUIT] = _POSIX_VDISABLE;
    if (!at_exit_registered) {
        at_exit_registered = atexit(terminal_restore) == 0;
    }
    for (size_t i = 0; i < BB_ARRAY_LEN(fatal_signals); i++) {
        sigaction(fatal_signals[i], &action, &terminal.before[i]);
    }
    /* Pairs with terminal_restore(). */
    bb_store_release(&terminal.active, 1u);
    tcsetattr(STDIN_FILENO, TCSANOW, &raw);
}

static void terminal_cooked(void)
{
    /* Relaxed: only this thread sets it, others may only clear it. */
    if (bb_load_relaxed(&terminal.active) == 1) {
        terminal_restore();
        for (size_t i = 0; i < BB_ARRAY_LEN(fatal_signals); i++) {
            sigaction(fatal_signals[i], &terminal.before[i], NULL);
        }
    }
}

static void nudged(int signal_number)
{
    (void)signal_number; /* the interrupted system call is all that is wanted */
}

static void wake(int event_fd)
{
    uint64_t one = 1;
    /* Fails only on a full counter, and then the descriptor is readable already. */
    ssize_t written = write(event_fd, &one, sizeof(one));
    (void)written;
}

static void wake_clear(int event_fd)
{
    uint64_t count;
    ssize_t got = read(event_fd, &count, sizeof(count));
    (void)got;
}

void bb_serial_put(struct bb_serial *serial, uint8_t byte)
{
    /* Relaxed: the compare-and-swap below decides. */
    uint64_t head = bb_load_relaxed(&serial->head);
    do {
        /* Pairs with take(): the slots it has given back are empty. Signed: where `head` is old,
         * `tail` may have passed it; then the swap fails and brings the new one. */
        if ((int64_t)(head - bb_load_acquire(&serial->tail)) >= RING_SLOTS) {
            /* Relaxed: a statistic. */
            bb_fetch_add_relaxed(&serial->dropped, 1);
            return;
        }
    } while (!bb_cas_relaxed(&serial->head, &head, head + 1));
    /* Pairs with take(). */
    bb_store_release(&serial->slots[head % RING_SLOTS], (uint16_t)(BYTE_PRESENT | byte));
    /* The slot's store before the load of `asleep`: else the drain thread could look at the ring
     * before the store and sleep after we looked. Pairs with the fence in drain(). */
    bb_fence_full();
    if (bb_load_relaxed(&serial->asleep) == 1) {
        wake(serial->out_wake_fd);
    }
}

void bb_serial_room(struct bb_serial *serial)
{
    wake(serial->in_wake_fd);
}

static size_t take(struct bb_serial *serial, uint8_t *bytes, size_t max)
{
    /* Relaxed: only this thread writes it. */
    uint64_t tail = bb_load_relaxed(&serial->tail);
    size_t count = 0;
    while (count < max) {
        uint16_t *slot = &serial->slots[tail % RING_SLOTS];
        /* Pairs with bb_serial_put(). */
        uint16_t value = bb_load_acquire(slot);
        if (value == 0) {
            break;
        }
        bytes[count++] = (uint8_t)value;
        /* Relaxed: published by the store of `tail`. */
        bb_store_relaxed(slot, (uint16_t)0);
        tail++;
    }
    /* Pairs with the load of `tail` in bb_serial_put(). */
    bb_store_release(&serial->tail, tail);
    return count;
}

/* Writes all of it; false where the output refuses, or stays blocked for longer than a stop waits.
 */
static bool write_out(struct bb_serial *serial, const uint8_t *bytes, size_t count)
{
    int fd = serial->out_fd;
    while (count != 0) {
        if (bb_load_acquire(&serial->abandon) != 0) { /* pairs with join_within() */
            return false;
        }
        struct pollfd poll_out = {.fd = fd, .events = POLLOUT};
        if (poll(&poll_out, 1, -1) < 0 && errno != EINTR) {
            return false;
        }
        ssize_t written = write(fd, bytes, count);
        if (written >= 0) {
            bytes += written;
            count -= (size_t)written;
        } else if (errno != EINTR && errno != EAGAIN) {
            return false;
        }
    }
    return true;
}

static void *drain(void *arg)
{
    struct bb_serial *serial = arg;
    bool nowhere = serial->out_fd < 0; /* BB_SERIAL_NONE */
    bool broken = false;
    uint8_t bytes[CHUNK];

    for (;;) {
        /* Before the ring is looked at: what was queued before stopping was set is written.
         * Pairs with bb_serial_stop(). */
        bool stopping = bb_load_acquire(&serial->stopping) != 0;
        size_t count = take(serial, bytes, sizeof(bytes));
        if (count != 0) {
            if (!nowhere && (broken || !write_out(serial, bytes, count))) {
                broken = true;
                bb_fetch_add_relaxed(&serial->dropped, count); /* a statistic */
            }
            continue;
        }
        if (stopping) {
            return NULL;
        }
        bb_store_relaxed(&serial->asleep, 1u);
        /* The store of `asleep` before the look at the ring; see bb_serial_put(). */
        bb_fence_full();
        uint64_t tail = bb_load_relaxed(&serial->tail); /* only this thread writes it */
        if (bb_load_acquire(&serial->slots[tail % RING_SLOTS]) == 0 &&
            bb_load_acquire(&serial->stopping) == 0) {
            struct pollfd poll_wake = {.fd = serial->out_wake_fd, .events = POLLIN};
            poll(&poll_wake, 1, -1);
            wake_clear(serial->out_wake_fd);
        }
        bb_store_relaxed(&serial->asleep, 0u); /* a wake too many does no harm */
    }
}

/* Offers bytes until all are taken; false where the port is being stopped. */
static bool offer(struct bb_serial *serial, const uint8_t *bytes, size_t count)
{
    while (bb_load_acquire(&serial->stopping) == 0) { /* pairs with bb_serial_stop() */
        size_t taken = serial->hooks.input(serial->hooks.opaque, bytes, count);
        bytes += taken;
        count -= taken;
        if (count == 0) {
            return true;
        }
        struct pollfd poll_wake = {.fd = serial->in_wake_fd, .events = POLLIN};
        poll(&poll_wake, 1, -1);
        wake_clear(serial->in_wake_fd);
    }
    return false;
}

static void *input(void *arg)
{
    struct bb_serial *serial = arg;
    uint8_t bytes[INPUT_CHUNK];

    if (serial->hooks.attach != NULL) {
        serial->hooks.attach(serial->hooks.opaque);
    }
    while (bb_load_acquire(&serial->stopping) == 0) { /* pairs with bb_serial_stop() */
        struct pollfd polled[2] = {
            {.fd = STDIN_FILENO, .events = POLLIN},
            {.fd = serial->in_wake_fd, .events = POLLIN},
        };
        if (poll(polled, 2, -1) < 0 && errno != EINTR) {
            break;
        }
        if (polled[1].revents != 0) {
            wake_clear(serial->in_wake_fd);
        }
        if (polled[0].revents == 0) {
            continue;
        }
        /* Somebody else may read the same terminal and leave us waiting here, until nudged. */
        ssize_t got = read(STDIN_FILENO, bytes, sizeof(bytes));
        if (got < 0 && (errno == EINTR || errno == EAGAIN)) {
            continue;
        }
        if (got <= 0 || !offer(serial, bytes, (size_t)got)) {
            break;
        }
    }
    if (serial->hooks.detach != NULL) {
        serial->hooks.detach(serial->hooks.opaque);
    }
    return NULL;
}

int bb_serial_open(const struct bb_serial_config *config, struct bb_serial **out,
                   struct bb_error *err)
{
    int rc;
    struct bb_serial *serial = aligned_alloc(64, (sizeof(*serial) + 63) & ~(size_t)63);
    if (serial == NULL) {
        return bb_error_set(err, BB_E_NOMEM, "no memory for the serial port");
    }
    memset(serial, 0, sizeof(*serial));
    serial->config = *config;
    serial->out_fd = -1;
    serial->out_wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    serial->in_wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (serial->out_wake_fd < 0 || serial->in_wake_fd < 0) {
        rc = bb_error_set(err, BB_E_SYSTEM, "can't make an eventfd: %s", strerror(errno));
        goto fail;
    }
    if (config->kind == BB_SERIAL_STDIO) {
        serial->out_fd = config->to_stderr ? STDERR_FILENO : STDOUT_FILENO;
    } else if (config->kind == BB_SERIAL_FILE) {
        /* O_NONBLOCK so that a FIFO without a reader is an error and no wait. */
        serial->out_fd =
            open(config->path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NONBLOCK, 0666);
        serial->out_owned = true;
        if (serial->out_fd < 0) {
            rc = bb_error_set(err, BB_E_SYSTEM, "can't write serial output to '%s': %s",
                              config->path, strerror(errno));
            goto fail;
        }
    }
    *out = serial;
    return BB_OK;
fail:
    bb_serial_close(serial);
    return rc;
}

int bb_serial_start(struct bb_serial *serial, const struct bb_serial_hooks *hooks,
                    struct bb_error *err)
{
    struct sigaction action = {.sa_handler = nudged};
    serial->hooks = *hooks;
    sigaction(NUDGE_SIGNAL, &action, &serial->nudge_before);
    serial->nudge_installed = true;
    int rc = pthread_create(&serial->drain_thread, NULL, drain, serial);
    serial->drain_runs = rc == 0;
    if (rc == 0 && serial->config.kind == BB_SERIAL_STDIO) {
        /* In the background a read would stop the process: then there is no input. */
        bool foreground = !isatty(STDIN_FILENO) || tcgetpgrp(STDIN_FILENO) == getpgrp();
        if (foreground) {
            terminal_raw();
            rc = pthread_create(&serial->input_thread, NULL, input, serial);
            serial->input_runs = rc == 0;
        }
    }
    if (rc != 0) {
        bb_serial_stop(serial);
        return bb_error_set(err, BB_E_SYSTEM, "can't make a serial thread: %s", strerror(rc));
    }
    return BB_OK;
}

static bool joined_after(pthread_t thread, long patience_ms)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += patience_ms * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    return pthread_timedjoin_np(thread, NULL, &until) == 0;
}

/*
 * Joins a thread that has been told to end. Once patience is over it is nudged out of the system
 * call that it is blocked in; again and again, because a nudge may come before the call.
 */
static void join_within(struct bb_serial *serial, pthread_t thread)
{
    if (joined_after(thread, STOP_PATIENCE_MS)) {
        return;
    }
    bb_store_release(&serial->abandon, 1u); /* pairs with write_out() */
    do {
        pthread_kill(thread, NUDGE_SIGNAL);
    } while (!joined_after(thread, NUDGE_MS));
}

void bb_serial_stop(struct bb_serial *serial)
{
    /* Pairs with the loads of `stopping` in drain(), offer() and input(). */
    bb_store_release(&serial->stopping, 1u);
    if (serial->input_runs) {
        wake(serial->in_wake_fd);
        join_within(serial, serial->input_thread);
        serial->input_runs = false;
    }
    if (serial->drain_runs) {
        wake(serial->out_wake_fd);
        join_within(serial, serial->drain_thread);
        serial->drain_runs = false;
    }
    if (serial->nudge_installed) {
        sigaction(NUDGE_SIGNAL, &serial->nudge_before, NULL);
        serial->nudge_installed = false;
    }
    terminal_cooked();
}

void bb_serial_close(struct bb_serial *serial)
{
    bb_serial_stop(serial);
    if (serial->out_owned && serial->out_fd >= 0) {
        close(serial->out_fd);
    }
    if (serial->out_wake_fd >= 0) {
        close(serial->out_wake_fd);
    }
    if (serial->in_wake_fd >= 0) {
        close(serial->in_wake_fd);
    }
    free(serial);
}

uint64_t bb_serial_dropped(const struct bb_serial *serial)
{
    return bb_load_relaxed(&serial->dropped); /* a statistic */
}

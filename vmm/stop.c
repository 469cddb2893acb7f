/* SPDX-License-Identifier: MIT */
/* The end of a run; see stop.h. */
#include "stop.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "../base/atomic.h"

int bb_stop_init(struct bb_stop *stop, struct bb_error *err)
{
    stop->word = 0;
    stop->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (stop->event_fd < 0) {
        return bb_error_set(err, BB_E_SYSTEM, "can't make an eventfd: %s", strerror(errno));
    }
    return BB_OK;
}

void bb_stop_fini(struct bb_stop *stop)
{
    close(stop->event_fd);
    stop->event_fd = -1;
}

bool bb_stop_request(struct bb_stop *stop, enum bb_stop_reason reason, unsigned status)
{
    uint64_t none = 0;
    uint64_t word = (uint64_t)reason << 32 | status;
    /* Pairs with bb_stop_reason(): whoever sees the word sees what its setter did before. */
    if (!bb_cas_acq_rel(&stop->word, &none, word)) {
        return false;
    }
    uint64_t one = 1;
    /* Can only fail on a full counter, and then the descriptor is readable already. */
    ssize_t written = write(stop->event_fd, &one, sizeof(one));
    (void)written;
    return true;
}

enum bb_stop_reason bb_stop_reason(const struct bb_stop *stop, unsigned *status)
{
    /* Pairs with bb_stop_request(). */
    uint64_t word = bb_load_acquire(&stop->word);
    if (status != NULL) {
        *status = (unsigned)word;
    }
    return (enum bb_stop_reason)(word >> 32);
}

const char *bb_stop_reason_name(enum bb_stop_reason reason)
{
    static const char *const names[] = {
        [BB_STOP_NONE] = "running",
        [BB_STOP_POWER_OFF] = "power off",
        [BB_STOP_DEBUG_EXIT] = "debug exit",
        [BB_STOP_RESET] = "reset",
        [BB_STOP_TRIPLE_FAULT] = "triple fault",
        [BB_STOP_FINISHED] = "finished",
        [BB_STOP_SIGNAL] = "signal",
        [BB_STOP_TIME] = "time limit",
        [BB_STOP_ERROR] = "error",
    };
    return names[reason];
}

/* SPDX-License-Identifier: MIT */
/*
 * KVM's ring of coalesced writes: one a VM, filled in the kernel by whichever vCPU writes, emptied
 * by whichever vCPU comes out of the guest first, one at a time.
 *
 * Every exit empties it before its own access is made, so that who learned of a write (by memory,
 * by an interrupt) finds it made. `first` is moved on only when the write has been made, so a ring
 * that is found empty holds nobody up and a ring that is not is waited for.
 */
#include <string.h>

#include "../base/atomic.h"
#include "../engine/access.h"
#include "kvm_internal.h"

enum { PAGE = 4096 };
#define RING_ENTRIES                                                                               \
    ((PAGE - sizeof(struct kvm_coalesced_mmio_ring)) / sizeof(struct kvm_coalesced_mmio))

/* Both indexes, `last` before `first`: if they are equal, all that was there when `last` was read
 * has been made. The other way round, a ring that went once round in between would look empty. */
static bool is_empty(const struct kvm_coalesced_mmio_ring *ring)
{
    uint32_t last = bb_load_acquire(&ring->last); /* pairs with the kernel's store */

    return bb_load_acquire(&ring->first) == last; /* pairs with make_writes() */
}

static void make_write(struct bb_kvm *kvm, struct bb_ctx *ctx,
                       const struct kvm_coalesced_mmio *entry)
{
    struct bb_space *space = entry->pio != 0 ? kvm->target.pio : kvm->target.mmio;
    uint64_t value = 0;

    if (entry->len > sizeof(value)) {
        return; /* KVM makes no such entry */
    }
    memcpy(&value, entry->data, entry->len);
    bb_mmio_write(ctx, space, entry->phys_addr, entry->len, value);
}

static void make_writes(struct bb_kvm *kvm, struct bb_ctx *ctx)
{
    struct kvm_coalesced_mmio_ring *ring = kvm->ring;

    while (!is_empty(ring)) {
        /* Relaxed: only who holds the lock moves it. */
        uint32_t first = bb_load_relaxed(&ring->first);
        struct kvm_coalesced_mmio entry = ring->coalesced_mmio[first % RING_ENTRIES];

        make_write(kvm, ctx, &entry);
        /* Release: the write has been made; pairs with is_empty(). */
        bb_store_release(&ring->first, (uint32_t)((first + 1) % RING_ENTRIES));
    }
}

void bb_kvm_drain_(struct bb_kvm *kvm, struct bb_ctx *ctx)
{
    if (kvm->ring == NULL || is_empty(kvm->ring)) {
        return;
    }
    pthread_mutex_lock(&kvm->ring_lock);
    make_writes(kvm, ctx);
    pthread_mutex_unlock(&kvm->ring_lock);
    /* The engine has coalesced them, as it does with writes that exit: they have waited enough. */
    bb_coalesced_flush(ctx);
}

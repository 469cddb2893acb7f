/* SPDX-License-Identifier: MIT */
/*
 * The news of a commit: what listeners are to be told of it, made under the map's lock while the
 * commit can still be given up.
 *
 * It holds every range, doorbell and coalesced range that goes, in the order of telling, and every
 * one that comes: copies, so that it can be told after what the commit replaced has been freed.
 * Each space's events are made twice, by one function: counted first, then written.
 *
 * A region whose doorbells alone changed arrives as a range that goes and comes again. The two are
 * held against each other, and only the difference is news.
 */
#include <assert.h>

#include "listener_internal.h"

/* Events being made; counted only, where `at` is NULL. */
struct out {
    struct bb_event_ *at;
    size_t count;
};

static void emit(struct out *out, struct bb_event_ event)
{
    if (out->at != NULL) {
        out->at[out->count] = event;
    }
    out->count++;
}

static void emit_piece(struct out *out, enum bb_event_kind_ kind, const struct bb_piece_ *piece)
{
    emit(out, (struct bb_event_){.kind = kind, .piece = *piece});
}

static bool same_range(const struct bb_piece_ *a, const struct bb_piece_ *b)
{
    return a->first == b->first && a->last == b->last && a->region == b->region &&
           a->offset == b->offset && a->read_only == b->read_only && a->memory == b->memory;
}

static bool same_doorbell(const struct bb_doorbell *a, const struct bb_doorbell *b)
{
    return a->offset == b->offset && a->size == b->size && a->match_value == b->match_value &&
           (!a->match_value || a->value == b->value) && a->fd == b->fd;
}

struct bb_bell_span_ bb_bells_in_(const struct bb_piece_ *piece)
{
    struct bb_bell_span_ span = {NULL, 0};
    const struct bb_bells_ *bells = piece == NULL ? NULL : piece->bells;

    if (bells == NULL) {
        return span;
    }
    for (uint32_t i = 0; i < bells->doorbell_count; i++) {
        const struct bb_doorbell *bell = &bells->doorbell[i];

        if (bell->offset < piece->offset ||
            bell->offset - piece->offset > piece->last - piece->first) {
            continue;
        }
        span.at = span.at == NULL ? bell : span.at;
        span.count++;
    }
    return span;
}

/* Doorbells of `piece` that `other`, the same range on the other side of the commit, has not. */
static void emit_doorbells(struct out *out, const struct bb_piece_ *piece,
                           const struct bb_piece_ *other)
{
    struct bb_bell_span_ mine = bb_bells_in_(piece);
    struct bb_bell_span_ theirs = bb_bells_in_(other);

    /* One change leaves the others in their order: what is equal at both ends needs no search. */
    while (mine.count != 0 && theirs.count != 0 && same_doorbell(mine.at, theirs.at)) {
        mine.at++, mine.count--;
        theirs.at++, theirs.count--;
    }
    while (mine.count != 0 && theirs.count != 0 &&
           same_doorbell(&mine.at[mine.count - 1], &theirs.at[theirs.count - 1])) {
        mine.count--;
        theirs.count--;
    }
    for (size_t i = 0; i < mine.count; i++) {
        size_t j = 0;
        while (j < theirs.count && !same_doorbell(&mine.at[i], &theirs.at[j])) {
            j++;
        }
        if (j == theirs.count) {
            emit(out, (struct bb_event_){
                          .kind = BB_EVENT_DOORBELL_,
                          .bell = {.at = piece->first + (mine.at[i].offset - piece->offset),
                                   .doorbell = mine.at[i]}});
        }
    }
}

bool bb_coalesced_in_(const struct bb_piece_ *piece, const struct bb_coalesced_ *range,
                      struct bb_coalesced_ *part)
{
    uint64_t last = piece->offset + (piece->last - piece->first);

    part->first = range->first > piece->offset ? range->first : piece->offset;
    part->last = range->last < last ? range->last : last;
    return part->first <= part->last;
}

static bool has_coalesced(const struct bb_piece_ *piece, const struct bb_coalesced_ *wanted)
{
    struct bb_coalesced_ part;

    if (piece == NULL || piece->bells == NULL) {
        return false;
    }
    for (uint32_t i = 0; i < piece->bells->coalesced_count; i++) {
        if (bb_coalesced_in_(piece, &piece->bells->coalesced[i], &part) &&
            part.first == wanted->first && part.last == wanted->last) {
            return true;
        }
    }
    return false;
}

static void emit_coalesced(struct out *out, const struct bb_piece_ *piece,
                           const struct bb_piece_ *other)
{
    struct bb_coalesced_ part;

    if (piece->bells == NULL) {
        return;
    }
    for (uint32_t i = 0; i < piece->bells->coalesced_count; i++) {
        if (bb_coalesced_in_(piece, &piece->bells->coalesced[i], &part) &&
            !has_coalesced(other, &part)) {
            bb_gpa_t first = piece->first + (part.first - piece->offset);
            emit(out, (struct bb_event_){
                          .kind = BB_EVENT_COALESCED_,
                          .coalesced = {.first = first, .last = first + (part.last - part.first)}});
        }
    }
}

static void emit_bells(struct out *out, const struct bb_piece_ *piece,
                       const struct bb_piece_ *other)
{
    if (other == NULL || other->bells != piece->bells) {
        emit_doorbells(out, piece, other);
        emit_coalesced(out, piece, other);
    }
}

/* The piece of `pieces` that is the same range as `piece`; NULL where there is none. */
static const struct bb_piece_ *find_same(const struct bb_pieces_ *pieces,
                                         const struct bb_piece_ *piece)
{
    size_t low = 0;
    size_t high = pieces->count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (pieces->piece[middle].first < piece->first) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < pieces->count && same_range(&pieces->piece[low], piece) ? &pieces->piece[low]
                                                                         : NULL;
}

static void make_removed(struct bb_news_ *news, struct out *out)
{
    const struct bb_delta_ *delta = news->delta;

    for (size_t i = delta->removed.count; i > 0; i--) {
        const struct bb_piece_ *piece = &delta->removed.piece[i - 1];
        const struct bb_piece_ *same = find_same(&delta->added, piece);

        emit_bells(out, piece, same);
        if (same == NULL) {
            emit_piece(out, BB_EVENT_RANGE_, piece);
            news->change.removed++;
            news->change.memory_removed += piece->memory ? 1 : 0;
        }
    }
}

static void make_added_piece(struct bb_news_ *news, struct out *out, const struct bb_piece_ *piece)
{
    const struct bb_piece_ *same = find_same(&news->delta->removed, piece);

    if (same == NULL) {
        emit_piece(out, BB_EVENT_RANGE_, piece);
        news->change.added++;
        news->change.memory_added += piece->memory ? 1 : 0;
    } else if (news->wants_unchanged) {
        emit_piece(out, BB_EVENT_UNCHANGED_, piece);
    }
    emit_bells(out, piece, same);
}

/*
 * A walk over the ranges of a view, rising or falling; leaves that continue each other are one
 * range. A leaf may stand in many slots, always in a row.
 */
struct walk {
    bool falling;
    void (*visit)(void *opaque, const struct bb_piece_ *piece);
    void *opaque;
    const struct bb_flat_ *leaf; /* met last */
    struct bb_piece_ held;       /* the range that is not yet known to be whole */
    bool holding;
};

static bool continues(const struct bb_piece_ *low, const struct bb_piece_ *high)
{
    return low->last + 1 == high->first && low->region == high->region &&
           low->offset + (high->first - low->first) == high->offset && low->bells == high->bells &&
           low->read_only == high->read_only && low->memory == high->memory;
}

static void walk_leaf(struct walk *walk, const struct bb_flat_ *leaf)
{
    struct bb_piece_ piece = bb_leaf_piece_(leaf);

    if (walk->holding && !walk->falling && continues(&walk->held, &piece)) {
        walk->held.last = piece.last;
    } else if (walk->holding && walk->falling && continues(&piece, &walk->held)) {
        walk->held.first = piece.first;
        walk->held.offset = piece.offset;
    } else {
        if (walk->holding) {
            walk->visit(walk->opaque, &walk->held);
        }
        walk->held = piece;
        walk->holding = true;
    }
}

static void walk_word(struct walk *walk, uintptr_t word)
{
    if (word == 0) {
        return;
    }
    if ((word & BB_RADIX_LEAF_BIT_) != 0) {
        const struct bb_flat_ *leaf = (const struct bb_flat_ *)(word - BB_RADIX_LEAF_TAG_);
        if (leaf != walk->leaf) {
            walk->leaf = leaf;
            walk_leaf(walk, leaf);
        }
        return;
    }
    const struct bb_node_ *node = (const struct bb_node_ *)(word & ~(uintptr_t)63);
    for (uint64_t left = node->used; left != 0;) {
        unsigned slot =
            walk->falling ? 63u - (unsigned)__builtin_clzll(left) : (unsigned)__builtin_ctzll(left);
        left &= ~BB_BIT64(slot);
        walk_word(walk, node->slot[slot]);
    }
}

void bb_view_walk_(uintptr_t tree, bool falling,
                   void (*visit)(void *opaque, const struct bb_piece_ *piece), void *opaque)
{
    struct walk walk = {.falling = falling, .visit = visit, .opaque = opaque};

    walk_word(&walk, tree);
    if (walk.holding) {
        visit(opaque, &walk.held);
    }
}

/* Makes what is told after publication, for a listener that wants to hear of every range. */
struct whole {
    struct bb_news_ *news;
    struct out *out;
    size_t next; /* of delta->added */
};

static void make_whole_piece(void *opaque, const struct bb_piece_ *piece)
{
    struct whole *whole = opaque;
    const struct bb_pieces_ *added = &whole->news->delta->added;

    if (whole->next < added->count && added->piece[whole->next].first <= piece->last) {
        make_added_piece(whole->news, whole->out, &added->piece[whole->next]);
        whole->next++;
    } else {
        emit_piece(whole->out, BB_EVENT_UNCHANGED_, piece);
    }
}

static void make_added(struct bb_news_ *news, struct out *out, uintptr_t tree)
{
    const struct bb_pieces_ *added = &news->delta->added;

    if (news->wants_unchanged) {
        struct whole whole = {.news = news, .out = out};
        bb_view_walk_(tree, false, make_whole_piece, &whole);
        assert(whole.next == added->count);
        return;
    }
    for (size_t i = 0; i < added->count; i++) {
        make_added_piece(news, out, &added->piece[i]);
    }
}

/* Makes the news of one space; with no room for events yet, finds out how many there are. */
static void make_news(struct bb_news_ *news, uintptr_t tree)
{
    struct out removed = {.at = news->removed};
    struct out added = {.at = news->added};

    news->change = (struct bb_change){.space = news->delta->space};
    make_removed(news, &removed);
    make_added(news, &added, tree);
    news->removed_count = removed.count;
    news->added_count = added.count;
}

/* True where a listener minds the space; *unchanged where one wants all its ranges. */
static bool minded(const struct bb_listeners_ *all, const struct bb_space *space, bool *unchanged)
{
    bool found = false;

    *unchanged = false;
    for (const struct bb_listener *l = all->first; l != NULL; l = l->next) {
        if (l->space == space) {
            found = true;
            *unchanged = *unchanged || l->ops->unchanged != NULL;
        }
    }
    return found;
}

/* Fills in what is minded and changed of `deltas`. Returns how many, at most BB_SPACES_MAX. */
static size_t look(const struct bb_listeners_ *all, const struct bb_root_ *root,
                   const struct bb_delta_ *deltas, size_t count, struct bb_news_ *news)
{
    size_t found = 0;

    for (size_t i = 0; i < count; i++) {
        struct bb_news_ one = {.delta = &deltas[i]};

        if (!minded(all, deltas[i].space, &one.wants_unchanged)) {
            continue;
        }
        make_news(&one, root->view[deltas[i].space->index].tree);
        if (one.removed_count + one.added_count != 0) {
            news[found++] = one;
        }
    }
    return found;
}

int bb_listeners_prepare_(struct bb_ctx *ctx, struct bb_map *map, const struct bb_root_ *root,
                          const struct bb_delta_ *deltas, size_t count, struct bb_told_ **told)
{
    const struct bb_listeners_ *all = map->listeners;
    struct bb_news_ news[BB_SPACES_MAX];
    size_t events = 0;

    (void)ctx;
    *told = NULL;
    if (all->first == NULL || count == 0) {
        return BB_OK;
    }
    assert(count <= BB_SPACES_MAX);
    size_t spaces = look(all, root, deltas, count, news);
    if (spaces == 0) {
        return BB_OK;
    }
    for (size_t i = 0; i < spaces; i++) {
        events += news[i].removed_count + news[i].added_count;
    }
    size_t bytes =
        sizeof(struct bb_told_) + spaces * sizeof(news[0]) + events * sizeof(struct bb_event_);
    struct bb_told_ *made = bb_heap_alloc(map->heap, bytes);
    if (made == NULL) {
        return BB_E_NOMEM;
    }
    struct bb_event_ *at = (struct bb_event_ *)(void *)&made->news[spaces];
    made->bytes = bytes;
    made->count = spaces;
    for (size_t i = 0; i < spaces; i++) {
        news[i].removed = at;
        news[i].added = at + news[i].removed_count;
        at = news[i].added + news[i].added_count;
        make_news(&news[i], root->view[news[i].delta->space->index].tree);
        news[i].delta = NULL;
        made->news[i] = news[i];
    }
    *told = made;
    return BB_OK;
}

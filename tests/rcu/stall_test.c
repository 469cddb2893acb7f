/* SPDX-License-Identifier: MIT */
/* Reports of grace periods that stall: whom they name, and how often they come. */
#include "rcu_test.h"

enum { STALL_NS = 2000000, REPORTS_KEPT = 8 };

/* What the hook was told. */
struct reports {
    struct gate count;
    struct gate named;
    struct gate strangers;
    struct {
        bool named;
        char name[BB_CTX_NAME_BYTES];
        int tid;
        uint32_t device_id;
        uint64_t waited_ns;
        char text[400];
    } seen[REPORTS_KEPT];
};

static void record(void *opaque, const struct bb_rcu_stall *stall)
{
    struct reports *reports = opaque;
    int i = gate_value(&reports->count);

    if (i < REPORTS_KEPT) {
        reports->seen[i].named = stall->thread_name != NULL;
        (void)snprintf(reports->seen[i].name, sizeof(reports->seen[i].name), "%s",
                       stall->thread_name == NULL ? "" : stall->thread_name);
        reports->seen[i].tid = stall->tid;
        reports->seen[i].device_id = stall->device_id;
        reports->seen[i].waited_ns = stall->waited_ns;
        (void)snprintf(reports->seen[i].text, sizeof(reports->seen[i].text), "%s", stall->text);
    }
    gate_raise(&reports->count);
    gate_raise(stall->thread_name == NULL ? &reports->strangers : &reports->named);
}

/* The first report that names a thread, or the first that does not. */
static int first_report(struct reports *reports, bool named)
{
    for (int i = 0; i < REPORTS_KEPT; i++) {
        if (reports->seen[i].named == named && reports->seen[i].waited_ns != 0) {
            return i;
        }
    }
    return -1;
}

static void nothing(struct bb_rcu_head *head)
{
    (void)head;
}

Test(rcu_stall, a_report_names_the_thread_its_id_and_its_device)
{
    struct reports reports = {GATE_INIT, GATE_INIT, GATE_INIT, {{false}}};
    const struct bb_rcu_config_ config = {
        .stall_ns = STALL_NS, .stall = record, .stall_opaque = &reports};
    struct domain domain;
    struct sitter sitter = {.device_id = 7};
    struct bb_rcu_head head;
    char tid[32];
    int i;

    domain_begin(&domain, &config);
    sitter_start(&sitter, domain.rcu, "vcpu3");
    bb_rcu_call(domain.ctx, &head, nothing, 0);
    gate_await(&reports.named, 1);
    sitter_end(&sitter);
    i = first_report(&reports, true);
    cr_assert_str_eq(reports.seen[i].name, "vcpu3");
    cr_assert_eq(reports.seen[i].tid, sitter.tid);
    cr_assert_eq(reports.seen[i].device_id, 7);
    cr_assert_geq(reports.seen[i].waited_ns, STALL_NS);
    (void)snprintf(tid, sizeof(tid), "(tid %d)", sitter.tid);
    cr_assert_not_null(strstr(reports.seen[i].text, "'vcpu3'"), "%s", reports.seen[i].text);
    cr_assert_not_null(strstr(reports.seen[i].text, tid), "%s", reports.seen[i].text);
    cr_assert_not_null(strstr(reports.seen[i].text, "device 7"), "%s", reports.seen[i].text);
    cr_assert_geq(bb_rcu_stats(domain.ctx).stalls, 1);
    domain_end(&domain);
}

Test(rcu_stall, the_same_stall_is_reported_again_only_when_it_is_ten_times_as_long)
{
    struct reports reports = {GATE_INIT, GATE_INIT, GATE_INIT, {{false}}};
    const struct bb_rcu_config_ config = {
        .stall_ns = STALL_NS, .stall = record, .stall_opaque = &reports};
    struct domain domain;
    struct sitter sitter = {.tid = 0};
    struct bb_rcu_head head;

    domain_begin(&domain, &config);
    sitter_start(&sitter, domain.rcu, "slow");
    bb_rcu_call(domain.ctx, &head, nothing, 0);
    gate_await(&reports.count, 3);
    sitter_end(&sitter);
    cr_assert_geq(reports.seen[1].waited_ns, UINT64_C(10) * STALL_NS);
    cr_assert_geq(reports.seen[2].waited_ns, UINT64_C(100) * STALL_NS);
    domain_end(&domain);
}

Test(rcu_stall, a_stall_of_synchronize_is_reported_too)
{
    struct reports reports = {GATE_INIT, GATE_INIT, GATE_INIT, {{false}}};
    const struct bb_rcu_config_ config = {
        .stall_ns = STALL_NS, .stall = record, .stall_opaque = &reports};
    struct domain domain;
    struct sitter sitter = {.tid = 0};
    pthread_t thread;

    domain_begin(&domain, &config);
    sitter_start(&sitter, domain.rcu, "reader");
    cr_assert_eq(
        pthread_create(&thread, NULL, (void *(*)(void *))(void (*)(void))bb_gp_wait_, domain.rcu),
        0);
    gate_await(&reports.named, 1);
    sitter_end(&sitter);
    (void)pthread_join(thread, NULL);
    domain_end(&domain);
}

Test(rcu_stall, a_reader_of_another_engine_is_called_a_stranger)
{
    struct reports reports = {GATE_INIT, GATE_INIT, GATE_INIT, {{false}}};
    const struct bb_rcu_config_ config = {
        .stall_ns = STALL_NS, .stall = record, .stall_opaque = &reports};
    struct domain domain;
    struct domain other;
    struct sitter sitter = {.tid = 0};
    struct bb_rcu_head head;
    int i;

    domain_begin(&domain, &config);
    domain_begin(&other, NULL);
    sitter_start(&sitter, other.rcu, "elsewhere");
    bb_rcu_call(domain.ctx, &head, nothing, 0);
    gate_await(&reports.strangers, 1);
    cr_assert_eq(gate_value(&reports.named), 0);
    sitter_end(&sitter);
    i = first_report(&reports, false);
    cr_assert_eq(reports.seen[i].tid, 0);
    cr_assert_not_null(strstr(reports.seen[i].text, "outside this engine"), "%s",
                       reports.seen[i].text);
    cr_assert_null(strstr(reports.seen[i].text, "elsewhere"));
    domain_end(&other);
    domain_end(&domain);
}

Test(rcu_stall, a_reader_that_entered_after_the_grace_period_began_is_not_named)
{
    struct reports reports = {GATE_INIT, GATE_INIT, GATE_INIT, {{false}}};
    const struct bb_rcu_config_ config = {
        .stall_ns = STALL_NS, .stall = record, .stall_opaque = &reports};
    struct domain domain;
    struct sitter early = {.tid = 0};
    struct sitter late = {.tid = 0};
    struct bb_rcu_head head;
    unsigned long phase;

    domain_begin(&domain, &config);
    sitter_start(&early, domain.rcu, "early");
    phase = bb_load_relaxed(&urcu_memb_gp.ctr) & URCU_GP_CTR_PHASE;
    bb_rcu_call(domain.ctx, &head, nothing, 0);
    while ((bb_load_relaxed(&urcu_memb_gp.ctr) & URCU_GP_CTR_PHASE) == phase) {
        (void)sched_yield();
    }
    sitter_start(&late, domain.rcu, "late");
    gate_await(&reports.named, 2); /* the second was composed with both inside */
    for (int i = 0; i < 2; i++) {
        cr_assert_null(strstr(reports.seen[i].text, "'late'"), "%s", reports.seen[i].text);
    }
    sitter_end(&early);
    sitter_end(&late);
    domain_end(&domain);
}

Test(rcu_stall, grace_periods_that_end_in_time_are_not_reported)
{
    struct reports reports = {GATE_INIT, GATE_INIT, GATE_INIT, {{false}}};
    const struct bb_rcu_config_ config = {
        .stall_ns = UINT64_C(20000000000), .stall = record, .stall_opaque = &reports};
    struct domain domain;

    domain_begin(&domain, &config);
    for (int i = 0; i < 20; i++) {
        cr_assert_eq(bb_rcu_synchronize(domain.ctx), BB_OK);
    }
    cr_assert_eq(bb_rcu_stats(domain.ctx).stalls, 0);
    cr_assert_eq(gate_value(&reports.count), 0);
    domain_end(&domain);
}

Test(rcu_stall, without_a_hook_the_report_goes_to_stderr_once_a_second_at_most)
{
    const struct bb_rcu_config_ config = {.stall_ns = STALL_NS};
    char path[] = "/tmp/busbar-stall-XXXXXX";
    int file = mkstemp(path);
    struct domain domain;
    struct sitter sitter = {.tid = 0};
    struct bb_rcu_head head;
    char text[1000] = "";
    FILE *in;

    cr_assert_geq(file, 0);
    domain_begin(&domain, &config);
    sitter_start(&sitter, domain.rcu, "quiet");
    cr_assert_geq(dup2(file, 2), 0);
    bb_rcu_call(domain.ctx, &head, nothing, 0);
    while (bb_rcu_stats(domain.ctx).stalls < 2) {
        (void)sched_yield();
    }
    sitter_end(&sitter);
    domain_end(&domain);
    in = fopen(path, "r");
    cr_assert_not_null(in);
    (void)fread(text, 1, sizeof(text) - 1, in);
    (void)fclose(in);
    (void)unlink(path);
    cr_assert_not_null(strstr(text, "busbar: a grace period has waited"), "%s", text);
    cr_assert_eq(strchr(text, '\n'), strrchr(text, '\n'), "one line: %s", text);
}

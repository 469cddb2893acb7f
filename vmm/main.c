/* SPDX-License-Identifier: MIT */
/*
 * The busbar command: its subcommands and options. Whatever is wrong with the command line is said
 * in one line on stderr, with what would be right, and ends with status 2 before anything starts.
 */
#include <argp.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../base/bits.h"
#include "demo.h"
#include "run.h"
#include "show_map.h"

enum { MEMORY_DEFAULT = 256 << 20, VCPUS_DEFAULT = 2, SECONDS_MAX = 1000000 };

enum {
    KEY_GUEST = 0x100,
    KEY_KERNEL,
    KEY_INITRD,
    KEY_APPEND,
    KEY_VCPUS,
    KEY_MEMORY,
    KEY_LOCK,
    KEY_SERIAL,
    KEY_CPU,
    KEY_JSON,
    KEY_COUNT,
    KEY_READS,
    KEY_SECONDS,
    KEY_HELP,
};

static const struct argp_option run_options[] = {
    {"guest", KEY_GUEST, "storm", 0, "Run the embedded storm (the default)", 1},
    {"kernel", KEY_KERNEL, "FILE", 0, "Boot FILE: bzImage, 64-bit vmlinux, multiboot-1 ELF", 1},
    {"initrd", KEY_INITRD, "FILE", 0, "Give the kernel FILE as initrd, or as its module", 1},
    {"append", KEY_APPEND, "TEXT", 0, "The kernel's command line", 1},
    {"vcpus", KEY_VCPUS, "N", 0, "1 to 1024 virtual processors; 2 by default", 2},
    {"memory", KEY_MEMORY, "SIZE", 0,
     "Guest memory, 2M to 1T, with K, M, G or T behind the number; 256M by default", 2},
    {"lock", KEY_LOCK, "MODE", 0,
     "free: as the engine is meant to run (the default); device: a lock a device; big: one lock "
     "over all, to compare with",
     2},
    {"cpu", KEY_CPU, "KIND", 0,
     "kvm, or threads: host threads make the storm's accesses; by default kvm where there is a "
     "/dev/kvm",
     2},
    {"serial", KEY_SERIAL, "WHERE", 0, "stdio (the default), file:PATH or none", 3},
    {"json", KEY_JSON, 0, 0, "Report in JSON on stdout; a serial port on stdio goes to stderr", 3},
    {"count-accesses", KEY_COUNT, 0, 0,
     "Report at the end what each vCPU accessed, by region; accesses take a slower path", 3},
    {"reads", KEY_READS, "N", 0, "Reads of each vCPU in each phase of the storm", 4},
    {"seconds", KEY_SECONDS, "N", 0, "End the run after N seconds, with status 124", 4},
    {"help", KEY_HELP, 0, 0, "Show this text", -1},
    {0},
};

static const char run_doc[] =
    "Run a guest whose every trapped access goes through busbar's engine."
    "\v"
    "Examples:\n"
    "  busbar run                                     the storm on 2 vCPUs\n"
    "  busbar run --vcpus 32 --lock big               the same work under one big lock\n"
    "  busbar run --cpu threads --vcpus 8 --json      without KVM, report in JSON\n"
    "  busbar run --vcpus 4 --count-accesses          what each vCPU did with each device\n"
    "  busbar run --kernel hpet_read_test.elf --vcpus 8\n"
    "  busbar run --kernel bzImage --initrd initrd.gz --append 'console=ttyS0' --memory 1G\n"
    "\n"
    "Exit status: 0 when the guest powered off or the storm passed; a debug-exit port's code c "
    "gives (c << 1) | 1; 1 when the storm or the guest failed; 2 for what could not be started; "
    "124 when --seconds were over; 128 + n for signal n.";

static const struct argp_option map_options[] = {
    {"vcpus", KEY_VCPUS, "N", 0, "1 to 1024 virtual processors; 2 by default", 1},
    {"memory", KEY_MEMORY, "SIZE", 0, "Guest memory, 2M to 1T; 256M by default", 1},
    {"json", KEY_JSON, 0, 0, "In JSON; vmm/README.md has its form", 2},
    {"help", KEY_HELP, 0, 0, "Show this text", -1},
    {0},
};

static const char map_doc[] =
    "Show the address spaces of the PC that guests run on: the tree of regions, the flat view that "
    "it comes to, and the structure that accesses are dispatched by, with the memory it takes."
    "\v"
    "Examples:\n"
    "  busbar map\n"
    "  busbar map --memory 8G                         RAM above 4 GiB too\n"
    "  busbar map --json | jq '.spaces[0].flat[] | .first + \" \" + .region'\n";

static const struct argp_option demo_options[] = {
    {"cpu", KEY_CPU, "KIND", 0,
     "kvm, or threads to leave guests out; by default kvm where there is a /dev/kvm", 1},
    {"help", KEY_HELP, 0, 0, "Show this text", -1},
    {0},
};

static const char demo_doc[] =
    "Compare the storm lock-free and under one big lock, at 2, 8 and 32 vCPUs, in guests and on "
    "host threads, beside what the machine can do at most. Takes less than two minutes."
    "\v"
    "Examples:\n"
    "  busbar demo\n"
    "  busbar demo --cpu threads                      without guests\n";

static const char main_help[] =
    "Usage: busbar COMMAND [OPTION...]\n"
    "busbar runs guests on a lock-free MMIO emulation engine.\n"
    "\n"
    "Commands:\n"
    "  run     run a guest: the embedded storm, or a kernel\n"
    "  map     show the PC's address spaces: regions, flat view, dispatch structure\n"
    "  demo    the storm lock-free and under one big lock, beside the limits, in two minutes\n"
    "  help    show this text; `busbar run --help` shows a command's options\n"
    "\n"
    "Examples:\n"
    "  busbar run --vcpus 8\n"
    "  busbar run --kernel bzImage --append 'console=ttyS0' --memory 1G\n"
    "  busbar map\n"
    "  busbar demo\n";

/* One line, and out. argp's own messages take two, and its status is another. */
static void __attribute__((noreturn, format(printf, 1, 2))) usage_error(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    fputs("busbar: ", stderr);
    vfprintf(stderr, fmt, args);
    fputc('\n', stderr);
    va_end(args);
    exit(BB_EXIT_USAGE);
}

/* A whole decimal number from min to max. */
static uint64_t parse_number(const char *option, const char *text, uint64_t min, uint64_t max)
{
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0 || value < min ||
        value > max) {
        usage_error("%s '%s': give a number from %llu to %llu", option, text,
                    (unsigned long long)min, (unsigned long long)max);
    }
    return value;
}

static uint64_t parse_memory(const char *text)
{
    static const char suffixes[] = "KMGT";
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    bool bad = text[0] < '0' || text[0] > '9' || errno != 0;
    if (!bad && *end != '\0') {
        const char *suffix = strchr(suffixes, *end >= 'a' ? *end - 'a' + 'A' : *end);
        unsigned shift = suffix == NULL ? 0 : 10 * (unsigned)(suffix - suffixes + 1);
        bad = suffix == NULL || end[1] != '\0' || value > UINT64_MAX >> shift;
        value <<= shift;
    }
    if (bad || value < BB_RAM_BYTES_MIN || value > BB_RAM_BYTES_MAX || value % 4096 != 0) {
        usage_error(
            "--memory '%s': give a size from 2M to 1T in whole 4K pages, such as 512M or 2G", text);
    }
    return value;
}

static int parse_choice(const char *option, const char *text, const char *const *names,
                        unsigned count, const char *right)
{
    for (unsigned i = 0; i < count; i++) {
        if (strcmp(text, names[i]) == 0) {
            return (int)i;
        }
    }
    usage_error("%s '%s': give %s", option, text, right);
}

static void parse_serial(const char *text, struct bb_serial_config *serial)
{
    if (strcmp(text, "stdio") == 0) {
        serial->kind = BB_SERIAL_STDIO;
    } else if (strcmp(text, "none") == 0) {
        serial->kind = BB_SERIAL_NONE;
    } else if (strncmp(text, "file:", 5) == 0 && text[5] != '\0') {
        serial->kind = BB_SERIAL_FILE;
        serial->path = text + 5;
    } else {
        usage_error("--serial '%s': give stdio, none or file:PATH", text);
    }
}

static enum bb_cpu_kind parse_cpu(const char *text)
{
    static const char *const names[] = {"kvm", "threads"};
    int choice = parse_choice("--cpu", text, names, BB_ARRAY_LEN(names), "kvm or threads");
    return choice == 0 ? BB_CPU_KVM : BB_CPU_THREADS;
}

/* argp says only that something was wrong; `word` is where it stopped. */
static void __attribute__((noreturn))
unknown_option(const char *command, const struct argp_option *options, const char *word)
{
    size_t length = strcspn(word, "=");
    for (const struct argp_option *o = options; o->name != NULL; o++) {
        if (strncmp(word, "--", 2) != 0 || length - 2 != strlen(o->name) ||
            strncmp(word + 2, o->name, length - 2) != 0) {
            continue;
        }
        if (o->arg != NULL) {
            usage_error("--%s needs a value: --%s %s", o->name, o->name, o->arg);
        }
        usage_error("--%s takes no value", o->name);
    }
    usage_error("unknown option '%s': see busbar %s --help", word, command);
}

static error_t parse_run(int key, char *arg, struct argp_state *state)
{
    static const char *const lock_names[] = {"free", "device", "big"};
    struct bb_options *options = state->input;

    switch (key) {
    case KEY_GUEST:
        if (strcmp(arg, "storm") != 0) {
            usage_error("--guest '%s': the one embedded guest is storm; others boot by --kernel",
                        arg);
        }
        options->kernel = NULL;
        break;
    case KEY_KERNEL:
        options->kernel = arg;
        break;
    case KEY_INITRD:
        options->initrd = arg;
        break;
    case KEY_APPEND:
        options->append = arg;
        break;
    case KEY_VCPUS:
        options->vcpus = (unsigned)parse_number("--vcpus", arg, 1, BB_VCPUS_MAX);
        break;
    case KEY_MEMORY:
        options->memory_bytes = parse_memory(arg);
        break;
    case KEY_LOCK:
        options->lock_mode = (enum bb_lock_mode)parse_choice(
            "--lock", arg, lock_names, BB_ARRAY_LEN(lock_names), "free, device or big");
        break;
    case KEY_SERIAL:
        parse_serial(arg, &options->serial);
        break;
    case KEY_CPU:
        options->cpu = parse_cpu(arg);
        break;
    case KEY_JSON:
        options->json = true;
        break;
    case KEY_COUNT:
        options->count_accesses = true;
        break;
    case KEY_READS:
        options->reads = parse_number("--reads", arg, 1, UINT32_MAX);
        break;
    case KEY_SECONDS:
        options->seconds = (unsigned)parse_number("--seconds", arg, 1, SECONDS_MAX);
        break;
    case KEY_HELP: {
        static const struct argp shown = {run_options, parse_run, NULL, run_doc, 0, 0, 0};
        argp_help(&shown, stdout, ARGP_HELP_STD_HELP & ~ARGP_HELP_EXIT_OK, "busbar run");
        exit(BB_EXIT_OK);
    }
    case ARGP_KEY_ARG:
        usage_error("'%s' is no option: a kernel is given as --kernel %s", arg, arg);
    case ARGP_KEY_ERROR:
        unknown_option("run", run_options, state->argv[state->next > 1 ? state->next - 1 : 1]);
    default:
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

static void check_run(const struct bb_options *options)
{
    if (options->kernel == NULL && (options->initrd != NULL || options->append != NULL)) {
        usage_error("%s goes to a kernel: add --kernel FILE",
                    options->initrd != NULL ? "--initrd" : "--append");
    }
    if (options->kernel != NULL && options->cpu == BB_CPU_THREADS) {
        usage_error("--kernel needs KVM: host threads can run the storm only, leave out --cpu "
                    "threads");
    }
    if (options->kernel != NULL && options->reads != 0) {
        usage_error("--reads is for the storm: leave out --kernel, or --reads");
    }
}

/* Signals wait for whoever reads this descriptor, in every thread made from here on. */
static int open_signals(void)
{
    int signal_fd = bb_signals_open();
    if (signal_fd < 0) {
        usage_error("can't take signals: %s", strerror(errno));
    }
    return signal_fd;
}

static int command_run(int argc, char **argv)
{
    static const struct argp argp = {run_options, parse_run, NULL, run_doc, 0, 0, 0};
    struct bb_options options = {.vcpus = VCPUS_DEFAULT, .memory_bytes = MEMORY_DEFAULT};

    argp_parse(&argp, argc, argv, ARGP_NO_ERRS | ARGP_NO_HELP | ARGP_NO_EXIT, NULL, &options);
    check_run(&options);
    options.serial.to_stderr = options.json;
    int signal_fd = open_signals();
    int status = bb_run(&options, signal_fd);
    close(signal_fd);
    return status;
}

static error_t parse_map(int key, char *arg, struct argp_state *state)
{
    switch (key) {
    case KEY_VCPUS:
    case KEY_MEMORY:
    case KEY_JSON:
        return parse_run(key, arg, state);
    case KEY_HELP: {
        static const struct argp shown = {map_options, parse_map, NULL, map_doc, 0, 0, 0};
        argp_help(&shown, stdout, ARGP_HELP_STD_HELP & ~ARGP_HELP_EXIT_OK, "busbar map");
        exit(BB_EXIT_OK);
    }
    case ARGP_KEY_ARG:
        usage_error("'%s' is no option: see busbar map --help", arg);
    case ARGP_KEY_ERROR:
        unknown_option("map", map_options, state->argv[state->next > 1 ? state->next - 1 : 1]);
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static int command_map(int argc, char **argv)
{
    static const struct argp argp = {map_options, parse_map, NULL, map_doc, 0, 0, 0};
    struct bb_options options = {.vcpus = VCPUS_DEFAULT, .memory_bytes = MEMORY_DEFAULT};

    argp_parse(&argp, argc, argv, ARGP_NO_ERRS | ARGP_NO_HELP | ARGP_NO_EXIT, NULL, &options);
    return bb_show_map(&options);
}

static error_t parse_demo(int key, char *arg, struct argp_state *state)
{
    enum bb_cpu_kind *cpu = state->input;
    switch (key) {
    case KEY_CPU:
        *cpu = parse_cpu(arg);
        break;
    case KEY_HELP: {
        static const struct argp shown = {demo_options, parse_demo, NULL, demo_doc, 0, 0, 0};
        argp_help(&shown, stdout, ARGP_HELP_STD_HELP & ~ARGP_HELP_EXIT_OK, "busbar demo");
        exit(BB_EXIT_OK);
    }
    case ARGP_KEY_ARG:
        usage_error("'%s' is no option: see busbar demo --help", arg);
    case ARGP_KEY_ERROR:
        unknown_option("demo", demo_options, state->argv[state->next > 1 ? state->next - 1 : 1]);
    default:
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

/* Whether guests are shown; where they can't be and nobody insists, one line says why. */
static bool demo_takes_kvm(enum bb_cpu_kind cpu)
{
    if (cpu == BB_CPU_THREADS) {
        return false;
    }
    int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (fd >= 0) {
        close(fd);
        return true;
    }
    const char *why = errno == ENOENT ? "there is no /dev/kvm on this machine"
                      : errno == EACCES || errno == EPERM
                          ? "no permission on /dev/kvm (join its group, usually kvm)"
                          : "/dev/kvm can't be opened";
    if (cpu == BB_CPU_KVM) {
        usage_error("%s: use --cpu threads", why);
    }
    fprintf(stderr, "busbar: %s: showing host threads only, as with --cpu threads\n", why);
    return false;
}

static int command_demo(int argc, char **argv)
{
    static const struct argp argp = {demo_options, parse_demo, NULL, demo_doc, 0, 0, 0};
    enum bb_cpu_kind cpu = BB_CPU_AUTO;

    argp_parse(&argp, argc, argv, ARGP_NO_ERRS | ARGP_NO_HELP | ARGP_NO_EXIT, NULL, &cpu);
    bool kvm = demo_takes_kvm(cpu);
    int signal_fd = open_signals();
    int status = bb_demo(kvm, signal_fd);
    close(signal_fd);
    return status;
}

/*
 * Whoever started us may have closed standard descriptors. One of ours would then take such a
 * number, and the serial port would eat the signals that are to end the run, or write into an
 * eventfd. Filled so that reading the input and writing the output go on failing.
 */
static void fill_standard_descriptors(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
        if (fcntl(fd, F_GETFD) < 0 &&
            open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) < 0) {
            _exit(BB_EXIT_USAGE); /* with nowhere to say so */
        }
    }
}

int main(int argc, char **argv)
{
    fill_standard_descriptors();
    signal(SIGPIPE, SIG_IGN);
    if (argc < 2) {
        usage_error("give a command: busbar run, busbar map, busbar demo, or busbar help");
    }
    if (strcmp(argv[1], "help") == 0 || strcmp(argv[1], "--help") == 0) {
        fputs(main_help, stdout);
        return BB_EXIT_OK;
    }
    if (strcmp(argv[1], "run") == 0) {
        return command_run(argc - 1, argv + 1);
    }
    if (strcmp(argv[1], "map") == 0) {
        return command_map(argc - 1, argv + 1);
    }
    if (strcmp(argv[1], "demo") == 0) {
        return command_demo(argc - 1, argv + 1);
    }
    usage_error("unknown command '%s': busbar run, busbar map, busbar demo, or busbar help",
                argv[1]);
}

/* SPDX-License-Identifier: MIT */
/*
 * The boot check: a kernel that checks what its loader handed it and reports on the first serial
 * port. What to expect it is told on its own command line, which is thereby checked as well:
 *   ram=BYTES        of memory, low and high together
 *   vcpus=N          processors in the MADT
 *   initrd=BYTES     size of the initrd, with
 *   hash=VALUE       its FNV-1a hash, 64 bits
 *   xsdt             there must be an XSDT (not every firmware makes one)
 * Ends through the debug-exit port with 0 where all checks hold, else 1.
 */
#include "boot_check.h"

enum { SERIAL = 0x3f8, SERIAL_LSR = 5, LSR_THRE = 0x20, DEBUG_EXIT = 0xf4 };

/* boot_params, by offset (Documentation/arch/x86/zero-page.rst). */
enum {
    BP_EXT_RAMDISK_IMAGE = 0x0c0,
    BP_EXT_RAMDISK_SIZE = 0x0c4,
    BP_EXT_CMD_LINE_PTR = 0x0c8,
    BP_E820_ENTRIES = 0x1e8,
    BP_BOOT_FLAG = 0x1fe,
    BP_HEADER = 0x202,
    BP_VERSION = 0x206,
    BP_TYPE_OF_LOADER = 0x210,
    BP_LOADFLAGS = 0x211,
    BP_RAMDISK_IMAGE = 0x218,
    BP_RAMDISK_SIZE = 0x21c,
    BP_CMD_LINE_PTR = 0x228,
    BP_E820_TABLE = 0x2d0,
};
enum { E820_ENTRY_BYTES = 20, E820_MAX = 128 };
enum { CMDLINE_MAX = 2048, KERNEL_FIRST = 0x100000, KERNEL_BYTES = 0x10000 };
#define MIB UINT64_C(0x100000)

_Noreturn void boot_main(uint64_t params);

static void put(char c)
{
    for (unsigned i = 0; i < 100000 && !(port_read8(SERIAL + SERIAL_LSR) & LSR_THRE); i++) {
    }
    port_write8(SERIAL, (uint8_t)c);
}

void say(const char *text)
{
    for (; *text; text++) {
        put(*text);
    }
}

void say_hex(uint64_t value)
{
    say("0x");
    unsigned shift = 60;
    while (shift != 0 && (value >> shift) == 0) {
        shift -= 4;
    }
    for (;; shift -= 4) {
        unsigned digit = (unsigned)(value >> shift) & 15;
        put((char)(digit < 10 ? '0' + digit : 'a' + digit - 10));
        if (shift == 0) {
            return;
        }
    }
}

void say_number(uint64_t value)
{
    if (value >= 10) {
        say_number(value / 10);
    }
    put((char)('0' + value % 10));
}

void check(struct boot_state *state, const char *claim, bool holds)
{
    say("boot: ");
    say(claim);
    say(holds ? ": ok\n" : ": FAILED\n");
    state->failures += !holds;
}

/* The text behind `name` where a word of the command line starts with it, else NULL. */
static const char *find_word(const struct boot_state *state, const char *name)
{
    const char *at = state->cmdline;
    while (*at) {
        const char *word = at, *expected = name;
        while (*expected && *word == *expected) {
            word++;
            expected++;
        }
        if (!*expected) {
            return word;
        }
        while (*at && *at != ' ') {
            at++;
        }
        while (*at == ' ') {
            at++;
        }
    }
    return (const char *)0;
}

bool option_set(const struct boot_state *state, const char *word)
{
    const char *rest = find_word(state, word);
    return rest && (*rest == ' ' || *rest == 0);
}

bool option(const struct boot_state *state, const char *name, uint64_t *value)
{
    const char *digits = find_word(state, name);
    uint64_t base = 10, parsed = 0;
    if (!digits || *digits != '=') {
        return false;
    }
    digits++;
    if (digits[0] == '0' && digits[1] == 'x') {
        base = 16;
        digits += 2;
    }
    for (; *digits && *digits != ' '; digits++) {
        unsigned digit =
            *digits <= '9' ? (unsigned)(*digits - '0') : (unsigned)(*digits - 'a' + 10);
        parsed = parsed * base + digit;
    }
    *value = parsed;
    return true;
}

struct e820_entry {
    uint64_t first, bytes;
    uint32_t type;
};

static unsigned e820_count(const struct boot_state *state)
{
    return peek8(state->params + BP_E820_ENTRIES);
}

static struct e820_entry e820_get(const struct boot_state *state, unsigned i)
{
    uint64_t at = state->params + BP_E820_TABLE + (uint64_t)i * E820_ENTRY_BYTES;
    return (struct e820_entry){peek(at, 8), peek(at + 8, 8), (uint32_t)peek(at + 16, 4)};
}

bool e820_inside(const struct boot_state *state, uint64_t first, uint64_t bytes, uint32_t type)
{
    for (unsigned i = 0; i < e820_count(state); i++) {
        struct e820_entry entry = e820_get(state, i);
        if (entry.type == type && first >= entry.first &&
            first - entry.first + bytes <= entry.bytes) {
            return true;
        }
    }
    return false;
}

bool e820_touches(const struct boot_state *state, uint64_t first, uint64_t bytes, uint32_t type)
{
    for (unsigned i = 0; i < e820_count(state); i++) {
        struct e820_entry entry = e820_get(state, i);
        if (entry.type == type && first < entry.first + entry.bytes &&
            entry.first < first + bytes) {
            return true;
        }
    }
    return false;
}

static void check_e820(struct boot_state *state)
{
    unsigned count = e820_count(state);
    bool apart = true, not_empty = true;
    uint64_t ram = 0, expected;
    for (unsigned i = 0; i < count && i < E820_MAX; i++) {
        struct e820_entry a = e820_get(state, i);
        say("boot: e820 ");
        say_hex(a.first);
        say(" + ");
        say_hex(a.bytes);
        say(" type ");
        say_number(a.type);
        say("\n");
        not_empty = not_empty && a.bytes != 0 && a.first + a.bytes > a.first;
        ram += a.type == E820_RAM ? a.bytes : 0;
        for (unsigned j = 0; j < i; j++) {
            struct e820_entry b = e820_get(state, j);
            apart = apart && (a.first >= b.first + b.bytes || b.first >= a.first + a.bytes);
        }
    }
    check(state, "e820 has 1 to 128 entries", count >= 1 && count <= E820_MAX);
    check(state, "e820 entries are not empty and don't wrap", not_empty);
    check(state, "e820 entries don't overlap", apart);
    check(state, "the kernel lies in RAM",
          e820_inside(state, KERNEL_FIRST, KERNEL_BYTES, E820_RAM));
    check(state, "no RAM where video memory and BIOS are",
          !e820_touches(state, 0xa0000, 0x60000, E820_RAM));
    check(state, "no RAM where the I/O APIC, the HPET and the local APIC are",
          !e820_touches(state, 0xfec00000, 0x1000, E820_RAM) &&
              !e820_touches(state, 0xfed00000, 0x1000, E820_RAM) &&
              !e820_touches(state, 0xfee00000, 0x1000, E820_RAM));
    if (option(state, "ram", &expected)) {
        /* Less the legacy hole, and what firmware keeps for itself. */
        check(state, "e820 covers the memory there is, less at most 2 MiB",
              ram <= expected && ram + 2 * MIB >= expected);
    }
}

static void check_params(struct boot_state *state)
{
    uint64_t params = state->params;
    check(state, "boot_flag is 0xaa55", peek(params + BP_BOOT_FLAG, 2) == 0xaa55);
    check(state, "header is HdrS", peek(params + BP_HEADER, 4) == 0x53726448);
    check(state, "protocol version is 2.06 or later", peek(params + BP_VERSION, 2) >= 0x206);
    check(state, "type_of_loader is set", peek8(params + BP_TYPE_OF_LOADER) != 0);
    check(state, "LOADED_HIGH is set", peek8(params + BP_LOADFLAGS) & 1);
}

static void find_cmdline(struct boot_state *state)
{
    uint64_t params = state->params;
    uint64_t at = peek(params + BP_CMD_LINE_PTR, 4) | peek(params + BP_EXT_CMD_LINE_PTR, 4) << 32;
    unsigned length = 0;
    state->cmdline = "";
    if (at == 0) {
        say("boot: no command line\n");
        return;
    }
    while (length < CMDLINE_MAX && peek8(at + length) != 0) {
        length++;
    }
    check(state, "the command line ends within 2048 bytes", length < CMDLINE_MAX);
    if (length < CMDLINE_MAX) {
        state->cmdline = (const char *)(uintptr_t)at;
        say("boot: command line: ");
        say(state->cmdline);
        say("\n");
    }
}

static void check_initrd(struct boot_state *state)
{
    uint64_t params = state->params, expected, expected_hash;
    uint64_t at = peek(params + BP_RAMDISK_IMAGE, 4) | peek(params + BP_EXT_RAMDISK_IMAGE, 4) << 32;
    uint64_t bytes = peek(params + BP_RAMDISK_SIZE, 4) | peek(params + BP_EXT_RAMDISK_SIZE, 4)
                                                             << 32;
    say("boot: initrd ");
    say_hex(at);
    say(" + ");
    say_hex(bytes);
    say("\n");
    if (bytes != 0) {
        check(state, "the initrd lies in RAM", e820_inside(state, at, bytes, E820_RAM));
        check(state, "the initrd does not overlap the kernel",
              at >= KERNEL_FIRST + KERNEL_BYTES || at + bytes <= KERNEL_FIRST);
    }
    if (!option(state, "initrd", &expected)) {
        return;
    }
    check(state, "the initrd has the right size", bytes == expected);
    if (option(state, "hash", &expected_hash) && bytes == expected) {
        uint64_t hash = UINT64_C(0xcbf29ce484222325);
        for (uint64_t i = 0; i < bytes; i++) {
            hash = (hash ^ peek8(at + i)) * UINT64_C(0x100000001b3);
        }
        check(state, "the initrd has the right content", hash == expected_hash);
    }
}

_Noreturn void boot_main(uint64_t params)
{
    struct boot_state state = {.params = params};
    say("boot: check begins, boot_params at ");
    say_hex(params);
    say("\n");
    check_params(&state);
    find_cmdline(&state);
    check_e820(&state);
    check_initrd(&state);
    boot_check_acpi(&state);
    say("boot: ");
    say_number(state.failures);
    say(state.failures == 0 ? " failures: all is well\n" : " failures\n");
    port_write32(DEBUG_EXIT, state.failures != 0);
    cpu_stop();
}

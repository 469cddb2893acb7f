/* SPDX-License-Identifier: MIT */
/*
 * Machine code for the tests' tiny guests, 32-bit flat mode as multiboot starts it, written by
 * hand because each is a handful of bytes.
 */
#ifndef BUSBAR_TESTS_VMM_PAYLOAD_H
#define BUSBAR_TESTS_VMM_PAYLOAD_H

#include <stdint.h>

/* al = 5; out 0xf4, al; hlt: debug exit with code 5. */
static const uint8_t payload_exit5[] = {0xb0, 0x05, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd};

/* dx = 0x3f8; al = 'R'; out dx, al; then it spins. */
static const uint8_t payload_ready_spin[] = {0x66, 0xba, 0xf8, 0x03, 0xb0, 'R',
                                             0xee, 0xf3, 0x90, 0xeb, 0xfc};

/* The same, then cli; hlt: it sleeps in the kernel for ever. */
static const uint8_t payload_ready_halt[] = {0x66, 0xba, 0xf8, 0x03, 0xb0, 'R',
                                             0xee, 0xfa, 0xf4, 0xeb, 0xfd};

/* The same, then reads the HPET's counter for ever: exits without end. */
static const uint8_t payload_ready_hpet[] = {0x66, 0xba, 0xf8, 0x03, 0xb0, 'R',  0xee,
                                             0xa1, 0xf0, 0x00, 0xd0, 0xfe, 0xeb, 0xf9};

/* Writes 'x' to the serial port for ever. */
static const uint8_t payload_flood[] = {0x66, 0xba, 0xf8, 0x03, 0xb0, 'x', 0xee, 0xeb, 0xfd};

/*
 * esi = text behind the code; ecx = its length; dx = 0x3f8; rep outsb; debug exit 0. Addresses are
 * absolute: the code lies at IMAGE_LOAD_AT, and there is no stack.
 */
static const uint8_t payload_rep_out[] = {
    0xbe, 0x16, 0x00, 0x20, 0x00,       /* mov esi, 0x200016 */
    0xb9, 0x0b, 0x00, 0x00, 0x00,       /* mov ecx, 11 */
    0x66, 0xba, 0xf8, 0x03,             /* mov dx, 0x3f8 */
    0xf3, 0x6e,                         /* rep outsb */
    0x30, 0xc0, 0xe6, 0xf4, 0xf4, 0x90, /* xor al, al; out 0xf4, al; hlt; nop */
    'h',  'e',  'l',  'l',  'o',  ',',  ' ', 'r', 'e', 'p', '\n',
};

/* dx = 0x604; ax = SLP_EN | SLP_TYP 5; out dx, ax. */
static const uint8_t payload_power_off[] = {0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00,
                                            0x34, 0x66, 0xef, 0xf4, 0xeb, 0xfd};

/* al = 0xfe; out 0x64, al: the keyboard controller's reset. */
static const uint8_t payload_reset[] = {0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd};

/* lidt of an empty table; ud2: a triple fault. */
static const uint8_t payload_triple_fault[] = {
    0x0f, 0x01, 0x1d, 0x09, 0x00, 0x20, 0x00, /* lidt [0x200009] */
    0x0f, 0x0b,                               /* ud2 */
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00,       /* limit 0, base 0 */
};

/* "Shutdown" on port 0x8900, a byte at a time. */
static const uint8_t payload_shutdown_text[] = {
    0x66, 0xba, 0x00, 0x89, /* mov dx, 0x8900 */
    0xb0, 'S',  0xee, 0xb0, 'h',  0xee, 0xb0, 'u',  0xee, 0xb0, 't',  0xee, 0xb0, 'd',
    0xee, 0xb0, 'o',  0xee, 0xb0, 'w',  0xee, 0xb0, 'n',  0xee, 0xf4, 0xeb, 0xfd,
};

#endif

/* SPDX-License-Identifier: MIT */
/*
 * Where things are on the PC that `busbar` emulates: one place for numbers that the machine, the
 * firmware tables and the tests share.
 */
#ifndef BUSBAR_VMM_BOARD_H
#define BUSBAR_VMM_BOARD_H

/* MMIO. */
#define BB_BOARD_IOAPIC 0xfec00000u
#define BB_BOARD_HPET 0xfed00000u
#define BB_BOARD_LOCAL_APIC 0xfee00000u

/* Ports. */
enum {
    BB_BOARD_PIC_MASTER = 0x20,
    BB_BOARD_PIT = 0x40,
    BB_BOARD_I8042_DATA = 0x60,
    BB_BOARD_PORT_B = 0x61,
    BB_BOARD_I8042_COMMAND = 0x64,
    BB_BOARD_RTC = 0x70,
    BB_BOARD_PIC_SLAVE = 0xa0,
    BB_BOARD_ZAP_PAGE = 0xe4,   /* test images: a 32-bit write unmaps that page for a moment */
    BB_BOARD_DEBUG_EXIT = 0xf4, /* exit status (code << 1) | 1 */
    BB_BOARD_UART = 0x3f8,
    BB_BOARD_ELCR = 0x4d0,
    BB_BOARD_FW_CFG = 0x510,
    BB_BOARD_PM1A_EVENT = 0x600,
    BB_BOARD_PM1A_CONTROL = 0x604,
    BB_BOARD_PM_TIMER = 0x608,
    BB_BOARD_PCI_CONFIG = 0xcf8,
    BB_BOARD_IRQ_PORT = 0x2000, /* test images: a byte to port 0x2000 + n sets interrupt line n */
    BB_BOARD_SHUTDOWN = 0x8900, /* "Shutdown", a byte at a time, powers off */
};

/* I/O APIC pins (global system interrupts). */
enum {
    BB_BOARD_GSI_TIMER = 2, /* ISA interrupt 0 */
    BB_BOARD_GSI_UART = 4,
    BB_BOARD_GSI_RTC = 8,
    BB_BOARD_GSI_SCI = 9,
    BB_BOARD_GSIS = 24,
};

/* The most timers for which an HPET's registers fit into the 1 KiB that its specification gives. */
enum { BB_BOARD_HPET_TIMERS = 24 };

#endif

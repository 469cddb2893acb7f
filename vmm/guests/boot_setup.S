/* SPDX-License-Identifier: MIT */
/*
 * The boot check as a bzImage: a setup header as Documentation/arch/x86/boot.rst lays it out
 * (protocol 2.15), a little real-mode code, and the kernel part behind it.
 *
 * A loader that uses the 32- or 64-bit protocol takes header and kernel part and never runs the
 * real-mode code. One that starts in real mode, as firmware does, runs it at offset 0x200: it asks
 * the BIOS for the memory map (int 0x15, E820h), fills it in where boot_params has it, and goes to
 * the 32-bit entry. The code lies behind the 4 KiB that then are boot_params.
 */
    .equ SETUP_SECTORS, 9
    .equ SETUP_BYTES, (SETUP_SECTORS + 1) * 512
    .equ E820_COUNT, 0x1e8
    .equ E820_TABLE, 0x2d0
    .equ E820_ENTRY_BYTES, 20
    .equ E820_MAX, 128
    .equ KERNEL_ADDRESS, 0x100000
    .equ INIT_BYTES, 0x100000

    .section .setup, "ax"
    .code16
    .globl _start
_start:
    .org 0x1f1
    .byte SETUP_SECTORS
    .word 0                     /* root_flags */
    .long syssize               /* setup.lds */
    .word 0, 0xffff, 0          /* ram_size, vid_mode, root_dev */
    .word 0xaa55                /* boot_flag */
    .byte 0xeb, header_end - 1f /* jump, over the header */
1:  .ascii "HdrS"
    .word 0x20f                 /* version */
    .long 0                     /* realmode_swtch */
    .word 0, version_text - 0x200
    .byte 0                     /* type_of_loader: the loader says */
    .byte 1                     /* loadflags: LOADED_HIGH */
    .word 0                     /* setup_move_size */
    .long KERNEL_ADDRESS        /* code32_start */
    .long 0, 0                  /* ramdisk_image, ramdisk_size */
    .long 0                     /* bootsect_kludge */
    .word 0                     /* heap_end_ptr */
    .byte 0, 0                  /* ext_loader_ver, ext_loader_type */
    .long 0                     /* cmd_line_ptr */
    .long 0x7fffffff            /* initrd_addr_max */
    .long 0x200000              /* kernel_alignment */
    .byte 0, 21                 /* relocatable_kernel, min_alignment */
    .word 1                     /* xloadflags: XLF_KERNEL_64 */
    .long 2047                  /* cmdline_size */
    .long 0                     /* hardware_subarch */
    .quad 0                     /* hardware_subarch_data */
    .long 0, 0                  /* payload_offset, payload_length */
    .quad 0                     /* setup_data */
    .quad KERNEL_ADDRESS        /* pref_address */
    .long INIT_BYTES            /* init_size */
    .long 0                     /* handover_offset */
    .long 0                     /* kernel_info_offset */
header_end:
    jmp real_mode

    .org 0x1000
version_text:
    .asciz "busbar boot check"

/* cs is 0x20 paragraphs above the first sector; offsets here count from that sector. */
real_mode:
    cli
    movw %cs, %ax
    subw $0x20, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $0x9ff0, %esp
    cld
    movb $0, E820_COUNT
    movw $E820_TABLE, %di
    xorl %ebx, %ebx
next_entry:
    movl $0xe820, %eax
    movl $E820_ENTRY_BYTES, %ecx
    movl $0x534d4150, %edx      /* "SMAP" */
    int $0x15
    jc map_done
    cmpl $0x534d4150, %eax
    jne map_done
    incb E820_COUNT
    addw $E820_ENTRY_BYTES, %di
    cmpb $E820_MAX, E820_COUNT
    jae map_done
    testl %ebx, %ebx
    jnz next_entry
map_done:
    cli
    xorl %esi, %esi
    movw %ds, %si
    shll $4, %esi               /* boot_params, for the 32-bit entry */
    leal gdt(%esi), %eax
    movl %eax, gdt_pointer + 2
    lgdtl gdt_pointer
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    movw $0x18, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    ljmpl $0x10, $KERNEL_ADDRESS

    .balign 8
gdt:
    .quad 0, 0
    .quad 0x00cf9b000000ffff    /* 0x10: 32-bit code */
    .quad 0x00cf93000000ffff    /* 0x18: data */
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .long 0

    .org SETUP_BYTES
    .incbin "boot_kernel.bin"
    .balign 16

    .section .note.GNU-stack, "", @progbits

/* SPDX-License-Identifier: MIT */
/*
 * The entries of the boot check's kernel part (Linux boot protocol): 32-bit at the first byte,
 * with flat segments and paging off; 64-bit at 0x200, in long mode with memory mapped one to one.
 * Both have rsi pointing to boot_params. Interrupts stay off throughout.
 */
    .section .text.head, "ax"
    .code32
    .globl boot_start32
boot_start32:
    cli
    cld
    movl $tables, %edi
    xorl %eax, %eax
    movl $(6 * 4096 / 4), %ecx
1:  movl %eax, (%edi)
    addl $4, %edi
    decl %ecx
    jnz 1b
    movl $(tables + 4096 + 3), tables
    movl $(tables + 2 * 4096 + 3), tables + 4096
    movl $(tables + 3 * 4096 + 3), tables + 4096 + 8
    movl $(tables + 4 * 4096 + 3), tables + 4096 + 16
    movl $(tables + 5 * 4096 + 3), tables + 4096 + 24
    movl $(tables + 2 * 4096), %edi
    movl $0x83, %eax            /* present, writable, 2 MiB */
2:  movl %eax, (%edi)
    addl $8, %edi
    addl $0x200000, %eax
    jnc 2b                      /* until 4 GiB are mapped */
    movl %cr4, %eax
    orl $0x20, %eax             /* PAE */
    movl %eax, %cr4
    movl $tables, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx      /* EFER */
    rdmsr
    orl $0x100, %eax            /* LME */
    wrmsr
    lgdt gdt_pointer
    movl %cr0, %eax
    orl $0x80000001, %eax       /* PG, PE */
    movl %eax, %cr0
    ljmpl $0x10, $boot_start64

    .balign 8
gdt:
    .quad 0, 0
    .quad 0x00af9b000000ffff    /* 0x10: 64-bit code */
    .quad 0x00cf93000000ffff    /* 0x18: data */
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt

    .org 0x200
    .code64
    .globl boot_start64
boot_start64:
    cli
    cld
    movl $stack_end, %esp
    xorl %ebp, %ebp
    movq %rsi, %rdi
    call boot_main
1:  cli
    hlt
    jmp 1b

    .section .bss
    .balign 4096
tables:
    .skip 6 * 4096
    .skip 16384
stack_end:

    .section .note.GNU-stack, "", @progbits

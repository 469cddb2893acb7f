/* SPDX-License-Identifier: MIT */
/*
 * The storm's entry and its interrupt stubs. Every vCPU enters at _start in 64-bit mode with its
 * number in rdi and rsp at the top of its own stack (storm.h), interrupts off.
 */
    .section .text.entry, "ax"
    .globl _start
_start:
    xorl %ebp, %ebp
    call storm_main
1:  cli
    hlt
    jmp 1b

/*
 * Exceptions 0 to 31: each pushes an error code where the processor pushes none, then its number.
 * storm_fault(vector, rip, error code) does not return.
 */
    .text
    .macro fault_stub vector
    .balign 16
    .if !(\vector == 8 || (\vector >= 10 && \vector <= 14) || \vector == 17 || \vector == 21 || \vector == 29 || \vector == 30)
    pushq $0
    .endif
    pushq $\vector
    jmp fault_common
    .endm

    .balign 16
    .globl storm_fault_stubs
storm_fault_stubs:
    .irp vector, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    fault_stub \vector
    .endr

fault_common:
    popq %rdi
    popq %rdx
    movq (%rsp), %rsi
    andq $-16, %rsp
    call storm_fault

/* An interrupt: saves what C may change, calls storm_interrupt(number of the stub). */
    .macro interrupt_stub number
    .balign 16
    pushq %rdi
    movl $\number, %edi
    jmp interrupt_common
    .endm

    .balign 16
    .globl storm_interrupt_stubs
storm_interrupt_stubs:
    interrupt_stub 0
    interrupt_stub 1
    interrupt_stub 2
    interrupt_stub 3
    interrupt_stub 4

interrupt_common:
    pushq %rax
    pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %rbp
    movq %rsp, %rbp
    andq $-16, %rsp
    cld
    call storm_interrupt
    movq %rbp, %rsp
    popq %rbp
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rsi
    popq %rdx
    popq %rcx
    popq %rax
    popq %rdi
    iretq

    .section .note.GNU-stack, "", @progbits

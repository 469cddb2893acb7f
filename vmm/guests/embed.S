/* SPDX-License-Identifier: MIT */
/* The storm's payload as bytes of the binary: bb_guest_storm_image to bb_guest_storm_image_end. */
    .section .rodata, "a"
    .balign 16
    .globl bb_guest_storm_image, bb_guest_storm_image_end
    .hidden bb_guest_storm_image, bb_guest_storm_image_end
bb_guest_storm_image:
    .incbin "storm.bin"
bb_guest_storm_image_end:

    .section .note.GNU-stack, "", @progbits

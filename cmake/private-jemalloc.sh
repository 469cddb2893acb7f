#!/bin/sh
# Makes one object of Debian's libjemalloc_pic.a whose every symbol is private to busbar.
#
#   private-jemalloc.sh AR LD NM OBJCOPY ARCHIVE OUTPUT
#
# Linked as it is, jemalloc replaces malloc in the whole process. Here its C objects (without the C++
# operators) are joined, each symbol that they define is given the prefix bb_je_, and all but the few
# that base/arena.c calls become local: the embedder's malloc stays what it was, and an embedder that
# uses jemalloc itself has another copy, with other state.
set -eu
ar=$1 ld=$2 nm=$3 objcopy=$4 archive=$5 output=$6

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
(cd "$work" && "$ar" x "$archive" && rm -f jemalloc_cpp.pic.o)
"$ld" -r -o "$work/joined.o" "$work"/*.pic.o
"$nm" --defined-only --extern-only --format=posix "$work/joined.o" |
    while read -r symbol rest; do echo "$symbol bb_je_$symbol"; done >"$work/names"
for symbol in mallctl mallocx dallocx malloc_conf; do
    grep -q "^$symbol " "$work/names" || { echo "$archive lacks $symbol" >&2; exit 1; }
    echo "bb_je_$symbol"
done >"$work/kept"
"$objcopy" --redefine-syms="$work/names" "$work/joined.o" "$work/renamed.o"
"$objcopy" --keep-global-symbols="$work/kept" "$work/renamed.o" "$output"

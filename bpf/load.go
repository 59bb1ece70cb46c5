package bpf

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -type rec_hdr -type rec_file -type rec_net -type rec_proc -type rec_exit -type rec_kind -type tables -type pool -type control -type hit -type verdict -type scratch -type automaton -type op_table -type word -type slot -type row -type leaf -type mount_info -type inode_key -type inode_name -type op_stats -type fold_key -type fold -type test_judge -type test_open Kernel pavise.bpf.c -- -I. -O2 -g -Wall -Werror -mcpu=v3

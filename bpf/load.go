package bpf

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -type rec_hdr -type rec_file -type rec_net -type rec_proc -type rec_exit -type rec_kind Kernel pavise.bpf.c -- -I. -O2 -g -Wall -Werror -mcpu=v3

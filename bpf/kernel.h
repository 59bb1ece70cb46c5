/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef PAVISE_KERNEL_H
#define PAVISE_KERNEL_H
#endif

/* The head of every message between ranks. Internal to comm/.
 *
 * Fixed size, little-endian, read through a bounds-checked cursor; what follows it in a dispatch is
 * checked by com_wire_lists_check. Thread: any. */
#ifndef COMM_WIRE_H
#define COMM_WIRE_H

#include "comm/comm.h"

#ifdef __cplusplus
extern "C" {
#endif

#define COM_WIRE_SIZE 96u

typedef enum com_kind {
    COM_KIND_HELLO,  /* who I am; answered with the same */
    COM_KIND_ABORT,  /* the group has failed */
    COM_KIND_GATHER, /* data of com_gather */
    COM_KIND_HEADER,
    COM_KIND_DISPATCH,
    COM_KIND_COMBINE,
    COM_KIND_COUNT,
} com_kind;

typedef struct com_wire {
    com_kind kind;
    uint32_t rank;     /* the sender */
    uint32_t phase;    /* counts from 0 */
    uint32_t rows;     /* HEADER: brought; DISPATCH */
    uint32_t entries;  /* DISPATCH, COMBINE */
    uint32_t wish;     /* HEADER; DISPATCH: the layer; COMBINE: 1 = faulty */
    uint64_t epoch;    /* of the ranks' incarnations */
    uint64_t instance; /* hash of its name */
    uint64_t layout;   /* hash of it */
    uint64_t formation;
    uint64_t rank_mask, ready; /* HEADER */
    uint64_t reload;           /* HEADER */
    uint64_t bytes;            /* that follow */
} com_wire;

void com_wire_pack(const com_wire *wire, uint8_t out_bytes[COM_WIRE_SIZE]);
/* SL_CORRUPT: not ours, another version, or a field out of range. */
SL_MUST_USE sl_status com_wire_unpack(const void *bytes, size_t size, com_wire *out_wire,
                                      sl_err *err);

/* Bytes of a dispatch of so many rows and entries. */
uint64_t com_wire_dispatch_bytes(const com_layout *layout, uint32_t rows, uint32_t entries);
/* The parts of `data`, checked: counts of 1 to chosen that add up, experts ascending in a row and
 * on `rank`. holders [expert_count]: the ranks that have each expert in this layer, as bits. */
SL_MUST_USE sl_status com_wire_part(const com_layout *layout, const uint64_t *holders,
                                    uint32_t rank, const com_wire *wire, const void *data,
                                    com_part *out_part, sl_err *err);

#ifdef __cplusplus
}
#endif
#endif

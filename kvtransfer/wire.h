/* The messages of the protocol, packed and parsed. README.md shows the byte layout.
 *
 * Pure functions over bytes: owns nothing, any thread, never blocks. Little-endian. What parse
 * accepts, pack gives back bit by bit; the rest is refused as a whole. */
#ifndef KVTRANSFER_WIRE_H
#define KVTRANSFER_WIRE_H

#include "base/bytes.h"
#include "kvtransfer/kvtransfer.h"

#ifdef __cplusplus
extern "C" {
#endif

#define KVT_WIRE_MAGIC   0x3154564bu /* "KVT1" */
#define KVT_WIRE_VERSION 1u

typedef enum kvt_message_type {
    KVT_MESSAGE_HELLO = 1,      /* P -> D, first */
    KVT_MESSAGE_HELLO_ACK = 2,  /* D -> P */
    KVT_MESSAGE_PIECE = 3,      /* P -> D, header of an offered piece */
    KVT_MESSAGE_COMMIT = 4,     /* P -> D */
    KVT_MESSAGE_ACK = 5,        /* D -> P, results of pieces */
    KVT_MESSAGE_COMMIT_ACK = 6, /* D -> P */
    KVT_MESSAGE_CANCEL = 7,     /* P -> D */
    KVT_MESSAGE_REVOKE = 8,     /* D -> P, with the reason */
} kvt_message_type;

typedef enum kvt_piece_result {
    KVT_RESULT_VERIFIED = 0,
    KVT_RESULT_REFETCH = 1,   /* the sum differs: announce it once more */
    KVT_RESULT_RANGE = 2,     /* block, group or ordinal outside the transfer */
    KVT_RESULT_SIZE = 3,      /* not the size of its group */
    KVT_RESULT_DUPLICATE = 4, /* known under another ordinal */
    KVT_RESULT_FULL = 5,      /* more in flight than the window allows */
    KVT_RESULT_COUNT,
} kvt_piece_result;

typedef struct kvt_piece_ack {
    uint32_t ordinal;
    uint8_t result; /* kvt_piece_result */
    uint8_t attempt;
} kvt_piece_ack;

typedef struct kvt_hello {
    uint8_t version;
    uint64_t incarnation;
    char name[KVT_NAME_MAX]; /* printable ASCII */
} kvt_hello;

typedef struct kvt_piece_head {
    uint32_t ordinal; /* the piece's number in its transfer, in the order of announcement */
    uint32_t block;
    uint16_t group;
    uint8_t attempt; /* 0, then 1 after a sum mismatch */
    uint64_t bytes;
    uint64_t sum;
} kvt_piece_head;

typedef struct kvt_commit_head {
    uint32_t sequence;
    uint32_t pieces; /* ordinals below it are named */
    uint64_t tokens;
    bool final;
    sl_span payload; /* borrowed from the message */
} kvt_commit_head;

typedef struct kvt_ack_list {
    uint32_t count;
    kvt_piece_ack entries[KVT_WIRE_ACKS_MAX];
} kvt_ack_list;

typedef struct kvt_revoke_head {
    uint8_t code; /* sl_code */
    char text[KVT_TEXT_MAX];
} kvt_revoke_head;

typedef struct kvt_message {
    uint8_t type;
    kvt_nonce nonce; /* all but hello */
    union {
        kvt_hello hello; /* HELLO, HELLO_ACK */
        kvt_piece_head piece;
        kvt_commit_head commit;
        kvt_ack_list ack;
        uint32_t sequence; /* COMMIT_ACK */
        kvt_revoke_head revoke;
    };
} kvt_message;

#define KVT_WIRE_COMMIT_SIZE 42u /* before the payload */

/* False: not a whole, valid message (nothing in *out_message may then be used). A hello of another
 * version is accepted, so that both sides can say so. */
SL_MUST_USE bool kvt_wire_parse(const void *data, size_t size, kvt_message *out_message);
/* Returns the size, 0 if it does not fit or is not valid. */
size_t kvt_wire_pack(const kvt_message *message, void *data, size_t capacity);

/* ---- frames of the tcp transport: what stands before each message and each piece */

#define KVT_WIRE_FRAME_MAGIC   0x5354564bu /* "KVTS" */
#define KVT_WIRE_FRAME_VERSION 1u
#define KVT_WIRE_FRAME_SIZE    16u
#define KVT_WIRE_MESSAGE_MAX   (KVT_WIRE_COMMIT_SIZE + KVT_PAYLOAD_MAX)

typedef enum kvt_frame_kind {
    KVT_FRAME_MESSAGE = 1, /* `bytes` of a message follow */
    KVT_FRAME_PIECE = 2,   /* the PIECE head follows, then `bytes` of payload */
} kvt_frame_kind;

typedef struct kvt_frame {
    uint8_t kind;       /* kvt_frame_kind */
    uint16_t head_size; /* PIECE: KVT_WIRE_PIECE_SIZE; MESSAGE: 0 */
    uint64_t bytes;     /* 1 to KVT_WIRE_MESSAGE_MAX or KVT_PIECE_BYTES_MAX */
} kvt_frame;

/* Reads exactly KVT_WIRE_FRAME_SIZE bytes. NULL: valid; else why not. */
SL_MUST_USE const char *kvt_wire_parse_frame(const uint8_t *data, kvt_frame *out_frame);
void kvt_wire_pack_frame(const kvt_frame *frame, uint8_t out[KVT_WIRE_FRAME_SIZE]);

/* ---- local reads: transport messages of their own ids (local.h) */

/* Ends of different versions do not agree: their pieces take the other ways. */
#define KVT_WIRE_LOCAL_VERSION 3u
#define KVT_WIRE_LOCAL_SIZE    22u
#define KVT_WIRE_READ_SIZE     (20u + KVT_WIRE_PIECE_SIZE) /* of one offer; a message has several */
#define KVT_WIRE_TAKEN_SIZE    8u

typedef enum kvt_local_step {
    KVT_LOCAL_ASK,       /* P -> D: here is my word */
    KVT_LOCAL_CHALLENGE, /* D -> P: write this into it */
    KVT_LOCAL_READY,     /* P -> D: done */
    KVT_LOCAL_GO,        /* D -> P: I have found it there */
    KVT_LOCAL_STEP_COUNT,
} kvt_local_step;

typedef struct kvt_local_message {
    kvt_local_step step;
    uint32_t pid;     /* of the sender */
    uint64_t word_at; /* there */
    uint64_t challenge;
} kvt_local_message;

typedef struct kvt_read_offer { /* P -> D */
    uint32_t place;             /* of P's, below KVT_WINDOW_READS; one more than the one before */
    uint64_t address, bytes;    /* in P's memory */
    const uint8_t *head;        /* the packed PIECE; parsed: borrowed from the message */
} kvt_read_offer;

typedef struct kvt_taken_message { /* D -> P: done with the offers at these places */
    uint32_t place, count;
} kvt_taken_message;

/* False: not a whole, valid message. Pack fills exactly the message's size. */
SL_MUST_USE bool kvt_wire_parse_local(const void *data, size_t size, kvt_local_message *out);
void kvt_wire_pack_local(const kvt_local_message *message, uint8_t out[KVT_WIRE_LOCAL_SIZE]);
/* How many offers; 0: not a whole, valid message. */
SL_MUST_USE uint32_t kvt_wire_parse_reads(const void *data, size_t size,
                                          kvt_read_offer out[KVT_WIRE_READS_MAX]);
void kvt_wire_pack_read(const kvt_read_offer *offer, uint8_t out[KVT_WIRE_READ_SIZE]);
SL_MUST_USE bool kvt_wire_parse_taken(const void *data, size_t size, kvt_taken_message *out);
void kvt_wire_pack_taken(const kvt_taken_message *message, uint8_t out[KVT_WIRE_TAKEN_SIZE]);

#ifdef __cplusplus
}
#endif
#endif

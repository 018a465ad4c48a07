/* Every bound of kvtransfer, in one place. Full means refuse, never grow.
 *
 * Owns nothing; constants only. A change of a KVT_WIRE_ value is a change of the protocol. */
#ifndef KVTRANSFER_LIMITS_H
#define KVTRANSFER_LIMITS_H

/* ---- objects of one context */
#define KVT_SENDS_MAX   256u /* sending transfers open, CLOSED and not yet released included */
#define KVT_RECVS_MAX   256u /* receiving transfers open, the same */
#define KVT_PEERS_MAX   256u /* connections, either direction counted alone */
#define KVT_REGIONS_MAX 16u
#define KVT_EVENTS_MAX  4096u /* ring to the owner; when full, events wait in their transfers */

/* ---- one transfer */
#define KVT_BLOCKS_MAX       4096u /* 262,144 tokens at 64 a block */
#define KVT_GROUPS_MAX       128u
#define KVT_PIECES_MAX       131072u /* block_count * group_count */
#define KVT_PIECE_BYTES_MAX  ((uint64_t)8 << 20)
#define KVT_COMMITS_OPEN_MAX 16u    /* not yet acknowledged; one place is kept for the final one */
#define KVT_PAYLOAD_MAX      65536u /* payload bytes not yet acknowledged, all commits together */
#define KVT_FETCHES_MAX      2u     /* of one piece: a sum mismatch is fetched again once */

/* ---- one connection */
#define KVT_WINDOW_BYTES    ((uint64_t)2 << 20) /* announced, not yet acknowledged */
#define KVT_WINDOW_PIECES   48u
#define KVT_WINDOW_READS    256u /* in place of it where D reads P's memory, and by tcp; >= it */
#define KVT_MESSAGES_MAX    16u  /* small messages handed to the transport, not yet sent */
#define KVT_MESSAGE_MAX     1024u
#define KVT_WIRE_PIECE_SIZE 48u
#define KVT_WIRE_ACKS_MAX   128u /* entries of one ACK message */
#define KVT_WIRE_READS_MAX  32u  /* offers of one message for local reads; one call reads as many */

/* ---- one connection of the tcp transport */
/* What the kernel holds of it between both ends shall fit into a processor's cache. */
#define KVT_TCP_WINDOW_BYTES ((uint64_t)1 << 20)
#define KVT_TCP_AHEAD_BYTES  73728u              /* read ahead; holds the largest message */
#define KVT_TCP_COPY_MAX     16384u              /* pieces up to here come by way of it */
#define KVT_TCP_CALL_BYTES   ((uint64_t)1 << 20) /* that one call of the kernel moves */
#define KVT_TCP_PARTS_MAX    128u                /* of memory, named to one call */
#define KVT_TCP_EVENTS_MAX   64u                 /* taken from the kernel at a time */
#define KVT_TCP_ACCEPTS_MAX  64u                 /* new connections at a time */

/* ---- text */
#define KVT_NAME_MAX    64u  /* node name with its NUL */
#define KVT_ADDRESS_MAX 280u /* "host:port" or "tcp:host:port" with its NUL */
#define KVT_TEXT_MAX    192u /* reason of a CLOSED event */

/* ---- time, defaults of kvt_options */
#define KVT_CONNECT_MS     2000u  /* endpoint created .. hello answered */
#define KVT_STALL_MS       5000u  /* pieces in flight on a connection and none finished */
#define KVT_IDLE_MS        60000u /* connection without a transfer */
#define KVT_QUARANTINE_MS  30000u /* then the transport is restarted for it (not an option) */
#define KVT_ABANDON_MS     2000u  /* after a forced close, for requests to end (not an option) */
#define KVT_PROBE_MS       1000u  /* a message of ours to ourselves not heard: deaf (no option) */
#define KVT_PROBE_LATE_MS  100u   /* more, for what waits before it (not an option) */
#define KVT_PROBE_EACH_MS  250u   /* between two probes (not an option) */
#define KVT_DEAF_MS        5000u  /* between two restarts for deafness (not an option) */
#define KVT_CLOSE_GRACE_MS 500u   /* a closing transfer's open fetches may still finish */

/* ---- time, tcp transport: a silent host is given up (not options) */
#define KVT_TCP_KEEPALIVE_S    5u     /* nothing heard for so long: it is asked */
#define KVT_TCP_KEEPALIVE_EACH 2u     /* and again, in seconds */
#define KVT_TCP_KEEPALIVE_ASKS 3u     /* so often */
#define KVT_TCP_UNHEARD_MS     10000u /* bytes sent and not taken by its kernel */

#endif

/* Every bound of the router in one place. Full means refuse; nothing grows past these. */
#ifndef ROUTER_LIMITS_H
#define ROUTER_LIMITS_H

#ifdef __cplusplus
extern "C" {
#endif

/* HTTP */
#define RTR_HTTP_LINE_MAX          8192u  /* request line: 414 */
#define RTR_HTTP_HEAD_MAX          32768u /* request line and headers: 431 */
#define RTR_HTTP_HEADERS_MAX       100u
#define RTR_HTTP_TRAILER_MAX       8192u
#define RTR_HTTP_CHUNK_LINE_MAX    256u         /* chunk size and extensions */
#define RTR_HTTP_EXTRA_HEADERS_MAX 12u          /* response headers a handler may add */
#define RTR_HTTP_READ_BYTES        65536u       /* one read */
#define RTR_HTTP_PENDING_MAX       65536u       /* pipelined bytes kept while a request is served */
#define RTR_HTTP_BACKLOG_HIGH      (256u << 10) /* a stream pauses its producer above this */
#define RTR_HTTP_BACKLOG_MAX       (64u << 20)  /* hard bound of one connection's output */
#define RTR_HTTP_ACCEPT_BATCH      64u          /* connections taken in one pass */
#define RTR_HTTP_LINGER_BYTES      (64ull << 20) /* discarded after an early error answer */

/* Requests */
#define RTR_PAGE_TOKENS 64u  /* of a cache page, as the nodes count them */
#define RTR_ID_SIZE     32u  /* "r-" + 16 hex digits, of a choice "-" and its index; NUL */
#define RTR_CHOICES_MAX 128u /* `n` of one request */
#define RTR_HANDOUT_BYTES_MAX \
    (32u << 20) /* routing, or masks, of one request; half of the backlog */
#define RTR_PROMPT_SCORES_MAX     (1u << 18) /* log-probabilities of prompts in one answer */
#define RTR_PROMPT_MAX            (1u << 20)
#define RTR_ANSWER_TOKEN_TEXT_MAX 4096u /* text of one token */
#define RTR_ATTEMPTS_MAX          16u   /* what --attempts may be at most */
#define RTR_REPLACED_MAX          64u   /* times that a request begins again under other weights */
#define RTR_ACTIONS_MAX           8u    /* of one step of the request machine */
#define RTR_JSON_DEPTH            64
#define RTR_TRACE_EVENTS          8192u /* a loop remembers of requests; as many of why (2.6 MiB) */
#define RTR_EXPLAINED_MAX         8u    /* candidates of a role that are told of one choice */
#define RTR_DELIVER_BATCH         256u  /* tokens formatted before the loop looks elsewhere */

/* Cluster */
#define RTR_NODES_MAX          1024u
#define RTR_NODE_NAME_MAX      128u
#define RTR_OVERTAKEN_MAX      32u /* places found by later requests before one that lacks room */
#define RTR_REFUSED_MAX        8u  /* decode nodes a request remembers as having refused it */
#define RTR_PREFIX_BLOCKS_MAX  65536u /* of prompts, that a loop remembers who has (3 MiB) */
#define RTR_PREFIX_NODES_MAX   4u     /* of each block */
#define RTR_PREFIX_MATCHES_MAX 8u     /* nodes that are looked at for one prompt */

#ifdef __cplusplus
}
#endif
#endif

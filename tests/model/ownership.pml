/* Who owns a page while it is filled over the network: prefill, decode, router, late readers,
 * cancels, deadlines, crashes, a router whose death only one side notices.
 *
 * One page a node, so that every page is used again as early as it can be. A page's content is the
 * number of the request whose rows it holds; a sum that fits is a content that is right. A piece,
 * its commit and the tokens are one step each; admission, ticket, offer, fetch, answer and end are
 * steps of their own, and whatever crosses a wire may be late, be lost with its connection, or meet
 * the next incarnation of its addressee. The states are those of router/request.c, prefill/job.c,
 * decode/sequence.c and kvtransfer/ledger.c.
 *
 * Faults come from a budget: P or D dies, the router dies, a connection is lost or cut in silence, a
 * client leaves, a deadline passes early (SIGSTOP, a slow host), a bit flips. Deadlines pass by
 * themselves when nothing else can happen. At rest every request has ended, once, none badly
 * without a fault, no page is owned and no transfer is open.
 *
 * One process chooses among guarded steps: what happens at the same time is what happens in any
 * order. run.py builds and runs this; PLANTED=n takes rule n away, and that must be found. */

#ifndef REQUESTS
#define REQUESTS 2
#endif
#ifndef FAULTS
#define FAULTS 2
#endif
#define ATTEMPTS  2 /* epochs of a request, on one decode node or on two */
#define NODES     2 /* of each kind */
#define SLOTS     (NODES * REQUESTS)
#define TRANSFERS (REQUESTS * ATTEMPTS)
#define GARBAGE   7

/* The rules. Each can be taken away. */
#define RULE_SUM         (planted != 1)  /* D checks what arrived */
#define RULE_NONCE       (planted != 2)  /* an offer of no open transfer is refused */
#define RULE_D_CLOSE     (planted != 3)  /* D's page is free only when nothing can land in it */
#define RULE_REOPEN      (planted != 4)  /* ... and has a second transfer only then */
#define RULE_P_CLOSE     (planted != 5)  /* P's page is free only when its transfer is closed */
#define RULE_D_DEADLINE  (planted != 6)  /* D's transfer ends by itself */
#define RULE_STALL       (planted != 7)  /* a sequence waits for its next epoch only so long */
#define RULE_P_DEADLINE  (planted != 8)  /* P's job ends by itself */
#define RULE_STREAM      (planted != 9)  /* the router hears only the node that has the request */
#define RULE_INCARNATION (planted != 10) /* a restarted D knows none of its old transfers */
byte planted;

/* ---- state ---- */

/* A request, as the router sees it. */
#define NEW     0
#define ASKED   1 /* Admit is sent */
#define FILLING 2 /* the ticket is with P */
#define DONE    3
#define FAILED  4
#define GONE    5 /* the client left, or the router died */
byte q_state[REQUESTS];
byte q_epoch[REQUESTS];
byte q_decode[REQUESTS];
bool router = true;
bool hears_d, hears_p; /* that the router died */
bool faulty;           /* something happened, so a request may fail */
byte faults = FAULTS;

/* A slot of a decode node, S(node, request). */
#define NONE              0
#define OPENING           1
#define OPENING_CANCELLED 2
#define FETCHING          3
#define STALLED           4
#define RUNNING           5
#define CLOSING           6
byte s_state[SLOTS];
byte s_epoch[SLOTS];
bool s_reopen[SLOTS];
bool s_attached[SLOTS]; /* its router's stream stands */
byte s_news[SLOTS];     /* what the stream brings the router next: */
#define ADMITTED 1
#define REFUSED  2 /* this epoch; the sequence waits for another one */
#define FULL     3
#define ENDED    4 /* all tokens */
#define BROKEN   5 /* it ended without an answer */
#define LOST     6 /* the stream */
byte d_owner[NODES]; /* request + 1 */
byte d_content[NODES];

/* A job of a prefill node, S(node, request). */
#define QUEUED    1
#define COMPUTING 2
#define DRAINING  3
#define ENDING    4 /* waits for its transfer */
byte j_state[SLOTS];
byte j_epoch[SLOTS];
bool j_called[SLOTS]; /* the router's call stands */
bool j_failed[SLOTS]; /* it ended badly, which the router has not seen yet */
byte p_owner[NODES];
byte p_content[NODES];

/* A transfer, T(request, epoch): its two ends and what is on the wire. */
#define OPEN   1
#define SHUT   2 /* outcome decided; a fetch may still touch its page */
#define CLOSED 3
byte x_d[TRANSFERS], x_p[TRANSFERS];
bit x_decode[TRANSFERS], x_prefill[TRANSFERS];
byte x_piece[TRANSFERS];
#define OFFERED 1
#define FLYING  2
byte x_back[TRANSFERS]; /* D to P */
#define ACK    1
#define REVOKE 2
bool x_cancel[TRANSFERS]; /* P to D; also: the connection is lost */
bool x_cut[TRANSFERS];    /* nothing arrives any more, and nobody is told */

byte i, k; /* of loops; zero between steps */

#define S(node, request)  ((node) * REQUESTS + (request))
#define T(request, epoch) ((request) * ATTEMPTS + (epoch))
#define LIVE(x)           (x == OPEN || x == SHUT)
/* Something may still land in the page that node n bound for r. */
#define TOUCHES(n, t)     (x_decode[t] == n && LIVE(x_d[t]))
#define TOUCHED(n, r)     (TOUCHES(n, T(r, 0)) || TOUCHES(n, T(r, 1)))

/* ---- decode ---- */

inline d_tell(n, r, news)
{
    if
    :: s_attached[S(n, r)] -> s_news[S(n, r)] = news
    :: else
    fi
}

inline d_begin(n, r)
{
    s_reopen[S(n, r)] = false;
    s_state[S(n, r)] = FETCHING;
    x_d[T(r, s_epoch[S(n, r)])] = OPEN;
    x_decode[T(r, s_epoch[S(n, r)])] = n;
    d_tell(n, r, ADMITTED)
}

inline d_free(n, r)
{
    assert(d_owner[n] == r + 1);
    d_owner[n] = 0;
    d_content[n] = 0;
    s_state[S(n, r)] = NONE;
    s_epoch[S(n, r)] = 0;
    s_reopen[S(n, r)] = false;
    s_attached[S(n, r)] = false
}

/* The outcome of the slot's transfer is decided, badly. */
inline d_shut(n, r)
{
    if
    :: x_d[T(r, s_epoch[S(n, r)])] == OPEN ->
        x_d[T(r, s_epoch[S(n, r)])] = SHUT;
        x_back[T(r, s_epoch[S(n, r)])] = REVOKE
    :: else
    fi
}

/* The transfer failed; the page waits for the next epoch. */
inline d_stall(n, r)
{
    d_shut(n, r);
    s_state[S(n, r)] = STALLED;
    d_tell(n, r, REFUSED)
}

inline d_cancel(n, r)
{
    if
    :: s_state[S(n, r)] == OPENING -> s_state[S(n, r)] = OPENING_CANCELLED
    :: s_state[S(n, r)] == FETCHING -> d_shut(n, r); s_state[S(n, r)] = CLOSING
    :: s_state[S(n, r)] == STALLED || s_state[S(n, r)] == RUNNING -> s_state[S(n, r)] = CLOSING
    :: else
    fi
}

/* The next epoch of a sequence that waits, or is about to. */
inline d_admit_again(n, r)
{
    d_shut(n, r);
    s_epoch[S(n, r)] = q_epoch[r];
    s_news[S(n, r)] = 0;
    if
    :: s_state[S(n, r)] == OPENING
    :: s_state[S(n, r)] != OPENING -> s_state[S(n, r)] = STALLED; s_reopen[S(n, r)] = true
    fi
}

/* ---- prefill ---- */

/* The job ends badly; the router hears of it if it still listens. */
inline p_fail(n, r)
{
    j_failed[S(n, r)] = j_called[S(n, r)];
    j_called[S(n, r)] = false;
    if
    :: x_p[T(r, j_epoch[S(n, r)])] == OPEN ->
        x_p[T(r, j_epoch[S(n, r)])] = SHUT;
        x_cancel[T(r, j_epoch[S(n, r)])] = true
    :: else
    fi;
    j_state[S(n, r)] = ENDING
}

/* ---- router ---- */

inline q_end(r, how)
{
    assert(q_state[r] < DONE); /* every request ends once */
    assert(how != FAILED || faulty);
    j_called[S(0, r)] = false;
    j_called[S(1, r)] = false;
    j_failed[S(0, r)] = false;
    j_failed[S(1, r)] = false;
    q_state[r] = how;
    q_epoch[r] = 0;
    q_decode[r] = 0
}

/* The attempt came to nothing: again on the same node if the sequence waits there, else anywhere. */
inline q_retry(n, r)
{
    if
    :: s_attached[S(n, r)] && s_state[S(n, r)] == RUNNING -> skip /* filled after all */
    :: !(s_attached[S(n, r)] && s_state[S(n, r)] == RUNNING) && q_epoch[r] + 1 == ATTEMPTS ->
        if
        :: s_attached[S(n, r)] -> s_news[S(n, r)] = 0; d_cancel(n, r)
        :: else
        fi;
        q_end(r, FAILED)
    :: else ->
        q_epoch[r]++;
        j_called[S(0, r)] = false;
        j_called[S(1, r)] = false;
        if
        :: s_attached[S(n, r)] && (s_state[S(n, r)] == OPENING || s_state[S(n, r)] == FETCHING ||
               s_state[S(n, r)] == STALLED) ->
            d_admit_again(n, r);
            q_state[r] = ASKED
        :: else -> q_state[r] = NEW
        fi
    fi
}

#define MINE(n, r) (q_decode[r] == n && (q_state[r] == ASKED || q_state[r] == FILLING))
/* Nodes of a kind are alike: request 0 begins with numbers 0 where it can. */
#define MAY_BEGIN(n, r) (r > 0 || q_epoch[r] > 0 || n == 0 || d_owner[0] != 0)
#define MAY_FILL(n, r)  (r > 0 || q_epoch[r] > 0 || n == 0 || p_owner[0] != 0)

inline step_router(n, r)
{
    if
    :: q_state[r] == NEW && router && s_state[S(n, r)] == NONE && d_owner[n] == 0 &&
           MAY_BEGIN(n, r) ->
        s_state[S(n, r)] = OPENING;
        s_news[S(n, r)] = 0;
        s_attached[S(n, r)] = true;
        s_epoch[S(n, r)] = q_epoch[r];
        q_decode[r] = n;
        q_state[r] = ASKED
    :: q_state[r] == ASKED && router && s_news[S(q_decode[r], r)] == ADMITTED &&
           j_state[S(n, r)] == NONE && MAY_FILL(n, r) -> /* here n is a prefill node */
        s_news[S(q_decode[r], r)] = 0;
        j_state[S(n, r)] = QUEUED;
        j_epoch[S(n, r)] = q_epoch[r];
        j_called[S(n, r)] = true;
        x_p[T(r, q_epoch[r])] = OPEN;
        x_prefill[T(r, q_epoch[r])] = n;
        q_state[r] = FILLING
    :: router && s_news[S(n, r)] > ADMITTED && MINE(n, r) ->
        if
        :: s_news[S(n, r)] == FULL -> q_state[r] = NEW; s_news[S(n, r)] = 0
        :: s_news[S(n, r)] == ENDED -> q_end(r, DONE); s_news[S(n, r)] = 0
        :: else -> s_news[S(n, r)] = 0; q_retry(n, r)
        fi
    :: router && s_news[S(n, r)] == ENDED && !MINE(n, r) && !RULE_STREAM ->
        s_news[S(n, r)] = 0;
        q_end(r, DONE)
    :: router && j_failed[S(n, r)] && q_state[r] == FILLING ->
        j_failed[S(n, r)] = false;
        q_retry(q_decode[r], r)
    fi
}

/* ---- what nodes do ---- */

inline step_decode(n, r)
{
    if
    :: s_state[S(n, r)] == OPENING && d_owner[n] == 0 -> d_owner[n] = r + 1; d_begin(n, r)
    :: s_state[S(n, r)] == OPENING && d_owner[n] != 0 ->
        d_tell(n, r, FULL);
        s_state[S(n, r)] = NONE;
        s_epoch[S(n, r)] = 0;
        s_attached[S(n, r)] = false
    :: s_state[S(n, r)] == OPENING_CANCELLED ->
        s_state[S(n, r)] = NONE;
        s_epoch[S(n, r)] = 0;
        s_attached[S(n, r)] = false
    :: s_state[S(n, r)] == RUNNING ->
        assert(d_owner[n] == r + 1 && d_content[n] == r + 1); /* the right text */
        d_tell(n, r, ENDED);
        d_free(n, r)
    :: s_state[S(n, r)] == STALLED && s_reopen[S(n, r)] && (!TOUCHED(n, r) || !RULE_REOPEN) ->
        d_begin(n, r)
    :: !s_attached[S(n, r)] && s_state[S(n, r)] != NONE && s_state[S(n, r)] != CLOSING &&
           s_state[S(n, r)] != OPENING_CANCELLED -> d_cancel(n, r)
    :: !router && hears_d && s_attached[S(n, r)] -> s_attached[S(n, r)] = false
    fi
}

inline step_prefill(n, r)
{
    if
    :: j_state[S(n, r)] == QUEUED && p_owner[n] == 0 ->
        p_owner[n] = r + 1;
        j_state[S(n, r)] = COMPUTING
    :: j_state[S(n, r)] == COMPUTING ->
        p_content[n] = r + 1;
        j_state[S(n, r)] = DRAINING;
        if
        :: x_p[T(r, j_epoch[S(n, r)])] == OPEN -> x_piece[T(r, j_epoch[S(n, r)])] = OFFERED
        :: else
        fi;
        if
        :: RULE_P_CLOSE
        :: else -> p_owner[n] = 0; p_content[n] = 0
        fi
    :: j_state[S(n, r)] != NONE && j_state[S(n, r)] != ENDING && !j_called[S(n, r)] ->
        p_fail(n, r)
    :: !router && hears_p && j_called[S(n, r)] -> j_called[S(n, r)] = false
    fi
}

/* ---- what arrives; n is D, p is P ---- */

inline step_transfer(n, p, r, t)
{
    if
    :: x_cut[t] && x_piece[t] == FLYING -> x_piece[t] = 0
    /* D's end */
    :: x_piece[t] == OFFERED && x_d[t] == OPEN -> x_piece[t] = FLYING
    :: x_piece[t] == OFFERED && x_d[t] != OPEN ->
        if
        :: RULE_NONCE || d_owner[n] == 0 -> x_piece[t] = 0; x_back[t] = REVOKE
        :: else -> x_piece[t] = FLYING
        fi
    :: x_piece[t] == FLYING ->
        assert(d_owner[n] == r + 1);          /* nobody writes into another's page */
        assert(s_state[S(n, r)] != RUNNING);  /* nor into one that is read */
        x_piece[t] = 0;
        d_content[n] = p_content[p];
        if
        :: x_d[t] != OPEN
        :: x_d[t] == OPEN && (d_content[n] == r + 1 || !RULE_SUM) ->
            x_d[t] = CLOSED;
            x_back[t] = ACK;
            s_state[S(n, r)] = RUNNING
        :: x_d[t] == OPEN && d_content[n] != r + 1 && RULE_SUM -> d_stall(n, r)
        fi
    :: x_d[t] == SHUT -> /* after the grace by force: what flew is ended */
        x_d[t] = CLOSED;
        if
        :: x_piece[t] == FLYING -> x_piece[t] = 0
        :: else
        fi
    :: x_cancel[t] -> x_cancel[t] = false; d_stall(n, r)
    /* P's end */
    :: x_back[t] != 0 ->
        x_p[t] = CLOSED;
        if
        :: x_back[t] == REVOKE -> j_failed[S(p, r)] = j_called[S(p, r)]
        :: else
        fi;
        j_called[S(p, r)] = false;
        j_state[S(p, r)] = ENDING;
        x_back[t] = 0
    :: x_p[t] == SHUT -> /* after the grace by force: a late reader gets what is there then */
        x_p[t] = CLOSED;
        if
        :: x_piece[t] == OFFERED -> x_piece[t] = 0
        :: else
        fi
    fi
}

/* ---- faults ---- */

/* Node n dies, and is back at once with nothing. */
inline fault_decode(n)
{
    d_owner[n] = 0;
    d_content[n] = 0;
    i = 0;
    do
    :: i < REQUESTS ->
        if
        :: s_attached[S(n, i)] && router -> s_news[S(n, i)] = LOST
        :: else
        fi;
        s_state[S(n, i)] = NONE;
        s_epoch[S(n, i)] = 0;
        s_reopen[S(n, i)] = false;
        s_attached[S(n, i)] = false;
        k = T(i, 0);
        do
        :: k < T(i, ATTEMPTS) ->
            if
            :: TOUCHES(n, k) ->
                x_cancel[k] = false;
                x_back[k] = REVOKE; /* the connection is lost */
                if
                :: x_piece[k] == FLYING -> x_piece[k] = 0
                :: else /* an offer meets the next incarnation */
                fi;
                if
                :: RULE_INCARNATION -> x_d[k] = CLOSED
                :: else
                fi
            :: else
            fi;
            k++
        :: else -> break
        od;
        i++
    :: else -> break
    od;
    i = 0;
    k = 0
}

inline fault_prefill(n)
{
    p_owner[n] = 0;
    p_content[n] = 0;
    i = 0;
    do
    :: i < REQUESTS ->
        if
        :: j_state[S(n, i)] != NONE ->
            k = T(i, j_epoch[S(n, i)]);
            x_p[k] = CLOSED;
            x_back[k] = 0;
            x_cancel[k] = true;
            if
            :: x_piece[k] == OFFERED -> x_piece[k] = 0
            :: else /* what flies may still end, in garbage */
            fi;
            j_failed[S(n, i)] = j_called[S(n, i)];
            j_called[S(n, i)] = false;
            j_state[S(n, i)] = NONE;
            j_epoch[S(n, i)] = 0
        :: else
        fi;
        i++
    :: else -> break
    od;
    i = 0;
    k = 0
}

inline fault_router(d_hears, p_hears)
{
    router = false;
    hears_d = d_hears;
    hears_p = p_hears;
    i = 0;
    do
    :: i < REQUESTS ->
        if
        :: q_state[i] < DONE -> q_state[i] = GONE; q_epoch[i] = 0; q_decode[i] = 0
        :: else
        fi;
        s_news[S(0, i)] = 0;
        s_news[S(1, i)] = 0;
        j_failed[S(0, i)] = false;
        j_failed[S(1, i)] = false;
        i++
    :: else -> break
    od;
    i = 0
}

inline fault_client(r)
{
    if
    :: s_attached[S(q_decode[r], r)] && q_state[r] != NEW ->
        s_news[S(q_decode[r], r)] = 0;
        d_cancel(q_decode[r], r)
    :: else
    fi;
    q_end(r, GONE)
}

/* A bit flips while the piece flies. */
inline fault_bit(n, r, t)
{
    x_piece[t] = 0;
    d_content[n] = GARBAGE;
    if
    :: RULE_SUM -> d_stall(n, r)
    :: else -> x_d[t] = CLOSED; x_back[t] = ACK; s_state[S(n, r)] = RUNNING
    fi
}

#define WAITS_D(n, r) (s_state[S(n, r)] == FETCHING && RULE_D_DEADLINE)
#define WAITS_S(n, r) (s_state[S(n, r)] == STALLED && !s_reopen[S(n, r)] && RULE_STALL)
#define WAITS_P(n, r) \
    ((j_state[S(n, r)] == QUEUED || j_state[S(n, r)] == DRAINING) && RULE_P_DEADLINE)

inline stall_ends(n, r)
{
    s_state[S(n, r)] = CLOSING;
    d_tell(n, r, BROKEN)
}

/* ---- what nobody can tell apart from its happening at once ---- */

inline settle_transfer()
{
    if
    :: x_back[i] != 0 && (x_p[i] != OPEN || x_cut[i]) -> x_back[i] = 0
    :: else
    fi;
    if
    :: x_cancel[i] && (x_d[i] != OPEN || x_cut[i]) -> x_cancel[i] = false
    :: else
    fi;
    if
    :: x_piece[i] == OFFERED && x_cut[i] -> x_piece[i] = 0
    :: else
    fi;
    if
    :: !LIVE(x_d[i]) && !LIVE(x_p[i]) && x_piece[i] == 0 ->
        x_d[i] = 0;
        x_p[i] = 0;
        x_decode[i] = 0;
        x_prefill[i] = 0;
        x_cut[i] = false
    :: else
    fi
}

inline settle_slot(n, r)
{
    if
    :: s_state[S(n, r)] == CLOSING && (!TOUCHED(n, r) || !RULE_D_CLOSE) -> d_free(n, r)
    :: else
    fi;
    if
    :: s_news[S(n, r)] != 0 && (!router || (!MINE(n, r) && RULE_STREAM)) -> s_news[S(n, r)] = 0
    :: else
    fi;
    if
    :: j_state[S(n, r)] == ENDING && !LIVE(x_p[T(r, j_epoch[S(n, r)])]) ->
        if
        :: p_owner[n] == r + 1 -> p_owner[n] = 0; p_content[n] = 0
        :: else
        fi;
        j_state[S(n, r)] = NONE;
        j_epoch[S(n, r)] = 0;
        j_called[S(n, r)] = false
    :: else
    fi;
    if
    :: j_failed[S(n, r)] && q_state[r] != FILLING -> j_failed[S(n, r)] = false
    :: else
    fi
}

inline settle()
{
    i = 0;
    do
    :: i < TRANSFERS -> settle_transfer(); i++
    :: else -> break
    od;
    i = 0;
    do
    :: i < NODES ->
        k = 0;
        do
        :: k < REQUESTS -> settle_slot(i, k); k++
        :: else -> break
        od;
        i++
    :: else -> break
    od;
    i = 0;
    k = 0
}

/* ---- at rest ---- */

inline at_rest()
{
    i = 0;
    do
    :: i < NODES ->
        assert(d_owner[i] == 0 && p_owner[i] == 0); /* the ledger's sum is zero */
        k = 0;
        do
        :: k < REQUESTS ->
            assert(q_state[k] >= DONE);
            assert(s_state[S(i, k)] == NONE && j_state[S(i, k)] == NONE);
            k++
        :: else -> break
        od;
        i++
    :: else -> break
    od;
    i = 0;
    do
    :: i < TRANSFERS -> assert(!LIVE(x_d[i]) && !LIVE(x_p[i])); i++
    :: else -> break
    od
}

/* ---- all of it ---- */

#define AT(n, r) \
    :: step_router(n, r) \
    :: step_decode(n, r) \
    :: step_prefill(n, r) \
    /* a connection is lost: router and D, router and P */ \
    :: faults > 0 && (s_attached[S(n, r)] || s_news[S(n, r)] != 0) && router -> \
        HAPPENS; s_attached[S(n, r)] = false; s_news[S(n, r)] = LOST \
    :: faults > 0 && j_called[S(n, r)] && router -> \
        HAPPENS; j_called[S(n, r)] = false; j_failed[S(n, r)] = true \
    /* deadlines, early */ \
    :: faults > 0 && WAITS_D(n, r) -> HAPPENS; d_stall(n, r) \
    :: faults > 0 && WAITS_S(n, r) -> HAPPENS; stall_ends(n, r) \
    :: faults > 0 && WAITS_P(n, r) -> HAPPENS; p_fail(n, r)

#define OVER(r, t) \
    :: step_transfer(x_decode[t], x_prefill[t], r, t) \
    :: faults > 0 && x_d[t] == OPEN && x_piece[t] == FLYING -> \
        HAPPENS; fault_bit(x_decode[t], r, t) \
    /* P and D: lost, or cut in silence */ \
    :: faults > 0 && LIVE(x_d[t]) && LIVE(x_p[t]) -> \
        HAPPENS; x_cancel[t] = true; x_back[t] = REVOKE \
    :: faults > 0 && LIVE(x_p[t]) && !x_cut[t] -> HAPPENS; x_cut[t] = true

#define OF(r) \
    AT(0, r) AT(1, r) OVER(r, T(r, 0)) OVER(r, T(r, 1)) \
    :: faults > 0 && q_state[r] < DONE && router -> HAPPENS; fault_client(r)

#define DUE(r) \
    :: WAITS_D(0, r) -> d_stall(0, r) :: WAITS_D(1, r) -> d_stall(1, r) \
    :: WAITS_S(0, r) -> stall_ends(0, r) :: WAITS_S(1, r) -> stall_ends(1, r) \
    :: WAITS_P(0, r) -> p_fail(0, r) :: WAITS_P(1, r) -> p_fail(1, r)

#define HAPPENS faults--; faulty = true

init
{
    c_code {
        const char *text = getenv("PLANTED");
        now.planted = text ? atoi(text) : 0;
    };
    do
    :: atomic {
        if
        OF(0)
        OF(1)
#if REQUESTS == 3
        OF(2)
#endif
        :: faults > 0 -> d_step { HAPPENS; fault_decode(0) }
        :: faults > 0 -> d_step { HAPPENS; fault_decode(1) }
        :: faults > 0 -> d_step { HAPPENS; fault_prefill(0) }
        :: faults > 0 -> d_step { HAPPENS; fault_prefill(1) }
        :: faults > 0 && router -> d_step { HAPPENS; fault_router(true, true) }
        :: faults > 0 && router -> d_step { HAPPENS; fault_router(true, false) }
        :: faults > 0 && router -> d_step { HAPPENS; fault_router(false, true) }
        :: faults > 0 -> faults = 0 /* no more of them */
        :: timeout ->
            if
            DUE(0)
            DUE(1)
#if REQUESTS == 3
            DUE(2)
#endif
            :: else -> at_rest(); break
            fi
        fi;
        d_step { settle() }
    }
    od
}

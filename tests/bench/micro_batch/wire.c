/* See wire.h. A message waits in a queue of its sender's; a timer wakes whoever waits for the
 * group, so that waiting costs no core. */
#include "tests/bench/micro_batch/wire.h"

#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "comm/transport.h"
#include "comm/ucx.h"

#define QUEUE_MAX 16u /* a phase sends one to each rank, and there are two */

typedef struct waiting {
    uint32_t rank;
    uint8_t head[COM_WIRE_SIZE];
    const void *data;
    uint64_t bytes;
    sl_time_ns due;
} waiting;

struct com_transport {
    com_transport *inner;
    int timer, both; /* both: readable when the timer or the inner one is */
    waiting queue[QUEUE_MAX];
    uint32_t first, count;
    sl_time_ns free_at; /* the wire */
};

static double limit;
static struct {
    wire_phase *phases; /* NULL: nothing is taken down */
    uint32_t count;
    double last;
    bool waits;
} record;

void wire_set_limit(double bytes_per_second)
{
    limit = bytes_per_second;
}

static double cpu_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

void wire_record(wire_phase *out_phases)
{
    record.phases = out_phases;
    record.count = 0;
    record.waits = true;
    record.last = cpu_now();
}

uint32_t wire_record_end(double *out_after)
{
    *out_after = cpu_now() - record.last;
    record.phases = NULL;
    return record.count;
}

static void record_send(uint64_t bytes)
{
    if (!record.phases)
        return;
    double now = cpu_now();
    sl_assert(record.waits && record.count < WIRE_PHASES_MAX);
    record.phases[record.count++] = (wire_phase){now - record.last, 0, (double)bytes};
    record.last = now;
    record.waits = false;
}

static void record_progress(void)
{
    if (!record.phases || record.waits)
        return;
    record.phases[record.count - 1].between = cpu_now() - record.last;
    record.waits = true;
}

static void watch(int both, int fd)
{
    struct epoll_event event = {.events = EPOLLIN};
    sl_assert(epoll_ctl(both, EPOLL_CTL_ADD, fd, &event) == 0);
}

static sl_status wire_open(const com_options *options, com_group *group,
                           com_transport **out_transport, sl_err *err)
{
    com_transport *inner;
    SL_TRY(com_backend_ucx.open(options, group, &inner, err));
    com_transport *transport = sl_alloc(1, sizeof(*transport), "slow wire");
    transport->inner = inner;
    transport->timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    transport->both = epoll_create1(EPOLL_CLOEXEC);
    sl_assert(transport->timer >= 0 && transport->both >= 0);
    watch(transport->both, transport->timer);
    watch(transport->both, com_backend_ucx.fd(inner));
    *out_transport = transport;
    return sl_ok();
}

static void wire_close(com_transport *transport)
{
    com_backend_ucx.close(transport->inner);
    close(transport->timer);
    close(transport->both);
    sl_free(transport);
}

static const char *wire_address(const com_transport *transport)
{
    return com_backend_ucx.address(transport->inner);
}

static sl_status wire_connect(com_transport *transport, uint32_t rank, const char *address,
                              sl_err *err)
{
    return com_backend_ucx.connect(transport->inner, rank, address, err);
}

static void wire_send(com_transport *transport, uint32_t rank, const uint8_t head[COM_WIRE_SIZE],
                      const void *data, uint64_t bytes)
{
    record_send(bytes);
    if (limit <= 0 && transport->count == 0) {
        com_backend_ucx.send(transport->inner, rank, head, data, bytes);
        return;
    }
    sl_time_ns now = sl_now_ns();
    sl_time_ns begin = transport->free_at > now ? transport->free_at : now;
    sl_assert(transport->count < QUEUE_MAX);
    waiting *one = &transport->queue[(transport->first + transport->count++) % QUEUE_MAX];
    uint64_t takes = limit > 0 ? (uint64_t)((double)bytes / limit * 1e9) : 0;
    *one = (waiting){.rank = rank, .data = data, .bytes = bytes, .due = begin + takes};
    memcpy(one->head, head, sizeof(one->head));
    transport->free_at = one->due;
}

static bool wire_progress(com_transport *transport)
{
    bool sent = false;
    record_progress();
    while (transport->count > 0) {
        const waiting *one = &transport->queue[transport->first];
        if (one->due > sl_now_ns())
            break;
        transport->first = (transport->first + 1) % QUEUE_MAX;
        transport->count--;
        com_backend_ucx.send(transport->inner, one->rank, one->head, one->data, one->bytes);
        sent = true;
    }
    sent |= com_backend_ucx.progress(transport->inner);
    if (record.phases)
        record.last = cpu_now();
    return sent;
}

static int wire_fd(const com_transport *transport)
{
    return transport->both;
}

static bool wire_arm(com_transport *transport)
{
    struct itimerspec at = {{0, 0}, {0, 0}};
    if (transport->count > 0) {
        sl_time_ns due = transport->queue[transport->first].due;
        if (due <= sl_now_ns())
            return false;
        at.it_value.tv_sec = (time_t)(due / SL_S_NS);
        at.it_value.tv_nsec = (long)(due % SL_S_NS);
    }
    sl_assert(timerfd_settime(transport->timer, TFD_TIMER_ABSTIME, &at, NULL) == 0);
    return com_backend_ucx.arm(transport->inner);
}

static void wire_reset(com_transport *transport)
{
    transport->count = 0;
    com_backend_ucx.reset(transport->inner);
}

const com_backend wire_backend = {
    .open = wire_open,
    .close = wire_close,
    .address = wire_address,
    .connect = wire_connect,
    .send = wire_send,
    .progress = wire_progress,
    .fd = wire_fd,
    .arm = wire_arm,
    .reset = wire_reset,
};

/* See control.h. The members come from the view, their loads and usability from the main loop's
 * streams. */
#include "router/control.h"

#include "base/alloc.h"
#include "proto/sluice/v1/cluster.pb-c.h"
#include "rpc/methods.h"

#include <string.h>

/* One of the operator's methods: served once there is something to operate on. */
typedef struct operation_slot {
    rtr_control *control;
    const rtr_operation *operation;
} operation_slot;

struct rtr_control {
    rpc_server *server;
    rtr_operations *operations;
    operation_slot slots[RTR_OPERATIONS];
    const clu_view *view;
    rtr_nodes *nodes;
};

/* One reply under construction; strings are borrowed from the view. */
typedef struct listing {
    Sluice__V1__Member *members;
    Sluice__V1__Stamp *stamps;
    Sluice__V1__Load *loads;
    Sluice__V1__Member **pointers;
    size_t count;
} listing;

static const char *state_text(const rtr_control *control, const clu_view_member *member)
{
    if (member->suspect)
        return "suspect";
    if (member->info.state == CLU_MEMBER_STATE_READY && control->operations &&
        rtr_operations_cordoned(control->operations, member->info.name))
        return "cordoned";
    return clu_member_state_name(member->info.state);
}

static void list_member(const rtr_control *control, listing *list, const clu_view_member *member)
{
    const clu_member_info *info = &member->info;
    size_t i = list->count++;
    Sluice__V1__Member *out = &list->members[i];
    sluice__v1__member__init(out);
    sluice__v1__stamp__init(&list->stamps[i]);
    sluice__v1__load__init(&list->loads[i]);
    out->name = (char *)info->name;
    out->role = (char *)info->role;
    out->control = (char *)info->control;
    out->kv = (char *)info->kv;
    out->metrics = (char *)info->metrics;
    out->incarnation = info->incarnation;
    out->state = (char *)state_text(control, member);
    out->version = (char *)info->version;
    out->slots = info->slots;
    out->pages = info->pages;
    out->context_max = info->context_max;
    out->secret_mark = (char *)info->secret_mark;
    list->stamps[i].numerics_id = (char *)info->stamp.numerics_id;
    list->stamps[i].model_hash = (char *)info->stamp.model_hash;
    list->stamps[i].weights_version = (char *)info->stamp.weights_version;
    list->stamps[i].cache_format = (char *)info->stamp.cache_format;
    out->stamp = &list->stamps[i];
    list->pointers[i] = out;
}

/* What the streams know beyond the record. */
static void add_status(void *context, const rtr_node_status *status)
{
    listing *list = context;
    for (size_t i = 0; i < list->count; i++) {
        Sluice__V1__Member *member = &list->members[i];
        if (strcmp(member->name, status->info->name) != 0 ||
            member->incarnation != status->info->incarnation)
            continue;
        list->loads[i] = *status->load;
        member->load = &list->loads[i];
        if (status->incompatible)
            member->state = (char *)"incompatible";
        else if (status->paused && strcmp(member->state, "ready") == 0)
            member->state = (char *)"paused";
        else if (!status->usable && strcmp(member->state, "ready") == 0)
            member->state = (char *)"suspect";
    }
}

static void on_list_members(void *context, rpc_server_call *call, const ProtobufCMessage *request)
{
    rtr_control *control = context;
    Sluice__V1__ListMembersReply reply = SLUICE__V1__LIST_MEMBERS_REPLY__INIT;
    if (!control->view) {
        rpc_server_call_finish(call, SL_UNAVAILABLE, "the router is starting or stopping");
        return;
    }
    size_t count = clu_view_count(control->view);
    listing list = {
        .members = sl_alloc(count, sizeof *list.members, "router members"),
        .stamps = sl_alloc(count, sizeof *list.stamps, "router members"),
        .loads = sl_alloc(count, sizeof *list.loads, "router members"),
        .pointers = sl_alloc(count, sizeof *list.pointers, "router members"),
    };
    for (size_t i = 0; i < count; i++)
        list_member(control, &list, clu_view_at(control->view, i));
    if (control->nodes)
        rtr_nodes_visit(control->nodes, add_status, &list);
    reply.n_members = list.count;
    reply.members = list.pointers;
    reply.etcd_connected = clu_view_connected(control->view);
    reply.view_frozen = clu_view_frozen(control->view);
    rpc_server_call_reply(call, &reply.base);
    sl_free(list.pointers);
    sl_free(list.loads);
    sl_free(list.stamps);
    sl_free(list.members);
}

static void on_operation(void *context, rpc_server_call *call, const ProtobufCMessage *request)
{
    operation_slot *slot = context;
    if (slot->control->operations)
        slot->operation->on_call(slot->control->operations, call, request);
    else
        rpc_server_call_finish(call, SL_UNAVAILABLE, "the router is starting or stopping");
}

sl_status rtr_control_create(const rtr_control_options *options, rtr_control **out_control,
                             sl_err *err)
{
    rtr_control *control = sl_alloc(1, sizeof *control, "router control");
    rpc_handler handlers[RTR_OPERATIONS + 1] = {
        {&rpc_method_cluster_list_members, on_list_members, control}};
    for (uint32_t i = 0; i < RTR_OPERATIONS; i++) {
        control->slots[i] = (operation_slot){control, &RTR_OPERATION_TABLE[i]};
        handlers[i + 1] =
            (rpc_handler){RTR_OPERATION_TABLE[i].method, on_operation, &control->slots[i]};
    }
    rpc_server_options server = {.listen = options->listen,
                                 .tls = options->tls,
                                 .handlers = handlers,
                                 .handler_count = RTR_OPERATIONS + 1};
    sl_status status = rpc_server_create(options->runtime, &server, &control->server, err);
    if (!sl_is_ok(status)) {
        sl_free(control);
        return status;
    }
    *out_control = control;
    return status;
}

void rtr_control_set(rtr_control *control, const clu_view *view, rtr_nodes *nodes,
                     rtr_operations *operations)
{
    control->operations = operations;
    control->view = view;
    control->nodes = nodes;
}

const char *rtr_control_address(const rtr_control *control)
{
    return rpc_server_address(control->server);
}

void rtr_control_destroy(rtr_control *control)
{
    if (!control)
        return;
    rpc_server_destroy(control->server);
    sl_free(control);
}

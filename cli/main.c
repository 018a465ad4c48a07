/* sluicectl: the operator's tool. Reads the members from etcd, asks and tells nodes by rpc. */
#include <stdio.h>
#include <string.h>

#include "base/config.h"
#include "base/log.h"
#include "cli/commands.h"

static const ctl_command COMMANDS[] = {
    {"members", false, ctl_members},
    {"check", false, ctl_check},
    {"drain", true, ctl_drain},
    {"resume", true, ctl_resume},
};
#define COMMAND_COUNT (sizeof(COMMANDS) / sizeof(COMMANDS[0]))

#define AT(field) offsetof(ctl_options, field)

static const sl_option OPTIONS[] = {
    {.name = "etcd",
     .section = "Cluster",
     .type = SL_OPTION_STRING,
     .offset = AT(etcd),
     .default_text = "http://127.0.0.1:2379",
     .help = "etcd endpoints, separated by commas"},
    {.name = "cluster",
     .section = "Cluster",
     .type = SL_OPTION_STRING,
     .offset = AT(cluster),
     .default_text = "default",
     .help = "cluster name: the prefix of its keys in etcd"},
    {.name = "etcd-timeout",
     .section = "Cluster",
     .type = SL_OPTION_DURATION,
     .offset = AT(etcd_timeout_ns),
     .default_text = "5s",
     .help = "how long etcd may take to answer"},
    {.name = "call-timeout",
     .section = "Cluster",
     .type = SL_OPTION_DURATION,
     .offset = AT(call_timeout_ns),
     .default_text = "10s",
     .help = "how long a node may take to answer"},
    {.name = "json",
     .section = "Output",
     .type = SL_OPTION_BOOL,
     .offset = AT(json),
     .default_text = "false",
     .help = "one JSON object instead of a table"},
    {.name = "ledger",
     .section = "check",
     .type = SL_OPTION_BOOL,
     .offset = AT(ledger),
     .default_text = "false",
     .help = "ask each node who owns each of its pages, and find what cannot be"},
    {.name = "at-rest",
     .section = "check",
     .type = SL_OPTION_BOOL,
     .offset = AT(at_rest),
     .default_text = "false",
     .help = "with --ledger: no request is under way, so nothing may be owned"},
    {.name = "timeout",
     .section = "drain",
     .type = SL_OPTION_DURATION,
     .offset = AT(timeout_ns),
     .default_text = "0s",
     .help = "how long running requests may take to finish (0s: the node's --drain-timeout)"},
};

static const sl_config_spec SPEC = {
    .program = "sluicectl",
    .summary =
        "looks after a Sluice cluster\n\n"
        "commands\n"
        "  members        who is in the cluster, and how loaded\n"
        "  check          do all nodes answer and fit together; --ledger: who owns each page\n"
        "  drain NODE     take nothing new, finish what is there, leave\n"
        "  resume NODE    take a drain back, as long as the node has not left\n\n"
        "exit codes: 0 done and well; 1 not reached, not done, or something is wrong; 2 "
        "misuse",
    .positional = "COMMAND [NODE]",
    .options = OPTIONS,
    .option_count = sizeof(OPTIONS) / sizeof(OPTIONS[0]),
};

static int misuse(const char *text, const char *word)
{
    fprintf(stderr, "sluicectl: %s%s\ntry sluicectl --help\n", text, word);
    return CTL_EXIT_MISUSE;
}

static int run(const ctl_options *options, const ctl_command *command, const char *argument)
{
    ctl_session *session = NULL;
    sl_err err;
    if (!sl_is_ok(ctl_session_open(options, &session, &err)))
        return ctl_fail(&err);
    int code = command->run(session, argument);
    ctl_session_close(session);
    return code;
}

static int choose(const ctl_options *options, const sl_config *config)
{
    size_t count = sl_config_positional_count(config);
    if (count == 0)
        return misuse("which command?", "");
    const char *name = sl_config_positional(config, 0);
    for (size_t i = 0; i < COMMAND_COUNT; i++) {
        const ctl_command *command = &COMMANDS[i];
        size_t wanted = command->takes_node ? 2 : 1;
        if (strcmp(command->name, name) != 0)
            continue;
        if (count < wanted)
            return misuse("which node? usage: sluicectl [options] ", "drain|resume NODE");
        if (count > wanted)
            return misuse("one word too many: ", sl_config_positional(config, wanted));
        if (options->at_rest && !options->ledger)
            return misuse("--at-rest goes with ", "--ledger");
        return run(options, command, wanted > 1 ? sl_config_positional(config, 1) : NULL);
    }
    return misuse("no such command: ", name);
}

int main(int argc, char **argv)
{
    ctl_options options = {0};
    sl_config *config = NULL;
    int code = 0;
    sl_log_set_name("sluicectl");
    if (sl_config_parse(&SPEC, argc, argv, &options, &config, &code) == SL_CONFIG_RUN)
        code = choose(&options, config);
    sl_config_destroy(config);
    return code;
}

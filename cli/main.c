/* sluicectl: the operator's tool. Finds the members by etcd or a router, asks and tells nodes and
 * routers by rpc. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/log.h"
#include "cli/commands.h"

#define TIMEOUT_MAX_NS (720 * 3600 * SL_S_NS)
#define FOR_MAX_NS     (24 * 3600 * SL_S_NS) /* of a pause; nodes refuse more */

static int misuse(const char *text, const char *word)
{
    fprintf(stderr, "sluicectl: %s%s\ntry sluicectl --help\n", text, word);
    return CTL_EXIT_MISUSE;
}

/* ---- which command ---- */

/* How many of the words its name takes; 0: it is another one. */
static size_t match(const ctl_command *command, const sl_config *config)
{
    const char *space = strchr(command->name, ' ');
    const char *first = sl_config_positional(config, 0);
    if (!space)
        return strcmp(command->name, first) == 0;
    size_t size = (size_t)(space - command->name);
    if (strlen(first) != size || memcmp(command->name, first, size) != 0 ||
        sl_config_positional_count(config) < 2)
        return 0;
    return strcmp(space + 1, sl_config_positional(config, 1)) == 0 ? 2 : 0;
}

/* "which one? settings get, settings set"; or no such command. */
static int no_command(const char *name)
{
    size_t size = strlen(name);
    bool found = false;
    for (size_t i = 0; i < CTL_COMMAND_COUNT; i++) {
        const char *full = CTL_COMMANDS[i].name;
        if (strncmp(full, name, size) != 0 || full[size] != ' ')
            continue;
        fprintf(stderr, "%s%s", found ? ", " : "sluicectl: which one? ", full);
        found = true;
    }
    if (!found)
        return misuse("no such command: ", name);
    fprintf(stderr, "\ntry sluicectl --help\n");
    return CTL_EXIT_MISUSE;
}

static bool takes(const ctl_command *command, const char *option)
{
    for (size_t i = 0; command->options[i]; i++)
        if (strcmp(command->options[i], option) == 0)
            return true;
    return false;
}

/* NULL: no command takes it alone, it goes with all. */
static const char *option_owner(const char *option)
{
    for (size_t i = 0; i < CTL_COMMAND_COUNT; i++)
        if (takes(&CTL_COMMANDS[i], option))
            return CTL_COMMANDS[i].name;
    return NULL;
}

/* A flag that does nothing is a mistake of whoever gave it. 0: all is well. */
static bool is_within(uint64_t span_ns, uint64_t max_ns)
{
    return span_ns >= SL_MS_NS && span_ns <= max_ns;
}

static int check_options(const ctl_command *command, const ctl_options *options,
                         const sl_config *config)
{
    char text[200];
    if (options->dry_run && !(command->flags & CTL_CHANGES))
        return misuse("--dry-run does not go with ", command->name);
    if (options->watch && !(command->flags & CTL_READS))
        return misuse("--watch does not go with ", command->name);
    for (size_t i = 0; i < CTL_CONFIG_SPEC.option_count; i++) {
        const char *name = CTL_CONFIG_SPEC.options[i].name, *owner = option_owner(name);
        if (!owner || takes(command, name) || !sl_config_on_command_line(config, name))
            continue;
        snprintf(text, sizeof(text), "--%s goes with %s, not with ", name, owner);
        return misuse(text, command->name);
    }
    if (options->at_rest && !options->ledger)
        return misuse("--at-rest goes with ", "--ledger");
    /* Nodes are told in milliseconds, where 0 means that nothing is said. */
    if (options->timeout_ns > 0 && !is_within(options->timeout_ns, TIMEOUT_MAX_NS))
        return misuse("--timeout: must be 0s, or 1ms to ", "720h");
    if (!is_within(options->for_ns, FOR_MAX_NS))
        return misuse("--for: must be 1ms to ", "24h");
    return 0;
}

/* ---- running it ---- */

static int run_once(const ctl_options *options, const ctl_command *command,
                    const char *const *words)
{
    ctl_session *session = NULL;
    sl_err err;
    if (command->alone)
        return command->alone(options, words);
    if (!sl_is_ok(ctl_session_open(options, &session, &err)))
        return ctl_fail(&err);
    int code = command->run(session, words);
    ctl_session_close(session);
    return code;
}

/* Fresh each time: members come and go. What cannot be reached now may be later. */
static int run(const ctl_options *options, const ctl_command *command, const char *const *words)
{
    bool watch = options->watch || (command->flags & CTL_LIVE);
    bool clear = watch && !options->json && isatty(STDOUT_FILENO);
    int64_t left = watch ? options->count : 1;
    for (;;) {
        if (clear)
            fputs("\033[H\033[2J", stdout);
        int code = run_once(options, command, words);
        fflush(stdout);
        if (left > 0 && --left == 0)
            return code;
        ctl_pass(options->interval_ns);
    }
}

static int choose(const ctl_options *options, const sl_config *config)
{
    const char *words[SL_CONFIG_POSITIONAL_MAX + 1] = {NULL};
    char text[64];
    size_t count = sl_config_positional_count(config);
    if (count == 0)
        return misuse("which command?", "");
    for (size_t i = 0; i < CTL_COMMAND_COUNT; i++) {
        const ctl_command *command = &CTL_COMMANDS[i];
        size_t used = match(command, config);
        if (used == 0)
            continue;
        for (size_t j = used; j < count; j++)
            words[j - used] = sl_config_positional(config, j);
        if (count - used < command->words_min) {
            snprintf(text, sizeof text, "%s needs ", command->name);
            return misuse(text, command->words);
        }
        if (count - used > command->words_max)
            return misuse("one word too many: ", words[command->words_max]);
        int code = check_options(command, options, config);
        return code ? code : run(options, command, words);
    }
    return no_command(sl_config_positional(config, 0));
}

/* The summary with the commands; the caller's to free. */
static char *summary(void)
{
    sl_buf text;
    sl_buf_init(&text, 0);
    sl_buf_printf(&text, "%s\n\ncommands\n", CTL_CONFIG_SPEC.summary);
    for (size_t i = 0; i < CTL_COMMAND_COUNT; i++) {
        const ctl_command *command = &CTL_COMMANDS[i];
        char left[80];
        snprintf(left, sizeof(left), "%s%s%s", command->name, *command->words ? " " : "",
                 command->words);
        sl_buf_printf(&text, "  %-25s %s\n", left, command->help);
    }
    sl_buf_puts(&text, "\nexit codes: 0 done and well; 1 not reached, not done, or something is "
                       "wrong; 2 misuse");
    sl_buf_putc(&text, '\0');
    return sl_buf_take(&text, NULL);
}

int main(int argc, char **argv)
{
    ctl_options options = {0};
    sl_config *config = NULL;
    int code = 0;
    sl_config_spec spec = CTL_CONFIG_SPEC;
    char *text = summary();
    spec.summary = text;
    sl_log_set_name("sluicectl");
    if (sl_config_parse(&spec, argc, argv, &options, &config, &code) == SL_CONFIG_RUN)
        code = choose(&options, config);
    sl_config_destroy(config);
    sl_free(text);
    return code;
}

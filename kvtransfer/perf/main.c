/* kvt-perf: kvtransfer beside raw UCX in one run: same pieces, same cold buffers, same depth.
 *
 * Two processes. The server owns the pages that are filled, the client measures; a control
 * connection of text lines tells the server what comes next. `local` starts the server itself. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/config.h"
#include "kvtransfer/perf/bench.h"

const char *const perf_transports[] = {"shm", "tcp", NULL};
const char *const perf_kv_transports[] = {"ucx", "tcp", NULL};

static const sl_option option_table[] = {
    {.name = "transport",
     .section = "Measurement",
     .type = SL_OPTION_CHOICE,
     .offset = offsetof(perf_options, transport),
     .default_text = "shm",
     .choices = perf_transports,
     .help = "UCX's: shared memory or tcp; server and client alike (UCX_TLS in the environment has "
             "the last word)"},
    {.name = "kv-transport",
     .section = "Measurement",
     .type = SL_OPTION_CHOICE,
     .offset = offsetof(perf_options, kv_transport),
     .default_text = "ucx",
     .choices = perf_kv_transports,
     .help = "kvtransfer's: UCX, or plain tcp sockets"},
    {.name = "pages",
     .section = "Measurement",
     .type = SL_OPTION_INT,
     .offset = offsetof(perf_options, pages),
     .default_text = "1024",
     .min = 1,
     .max = KVT_PIECES_MAX,
     .help = "pieces in memory; together more than the caches hold"},
    {.name = "piece",
     .section = "Measurement",
     .type = SL_OPTION_BYTES,
     .offset = offsetof(perf_options, piece),
     .default_text = "403456",
     .help = "bytes of a piece"},
    {.name = "turn",
     .section = "Measurement",
     .type = SL_OPTION_BYTES,
     .offset = offsetof(perf_options, turn),
     .default_text = "32MiB",
     .help = "bytes of one turn, the next in memory each time (0: all)"},
    {.name = "rounds",
     .section = "Measurement",
     .type = SL_OPTION_INT,
     .offset = offsetof(perf_options, rounds),
     .default_text = "25",
     .min = 1,
     .max = PERF_ROUNDS_MAX,
     .help = "turns of each kind; medians count"},
    {.name = "groups",
     .section = "Tail",
     .type = SL_OPTION_INT,
     .offset = offsetof(perf_options, groups),
     .default_text = "0",
     .min = 0,
     .max = KVT_GROUPS_MAX,
     .help = "measure the time from the last of so many groups to the end instead (0: do not)"},
    {.name = "group-ms",
     .section = "Tail",
     .type = SL_OPTION_INT,
     .offset = offsetof(perf_options, group_ms),
     .default_text = "20",
     .min = 1,
     .max = 10000,
     .help = "milliseconds that a group takes to compute"},
    {.name = "listen",
     .section = "Two hosts",
     .type = SL_OPTION_STRING,
     .offset = offsetof(perf_options, listen),
     .default_text = "127.0.0.1:0",
     .help = "server: control address; port 0: any, printed"},
    {.name = "connect",
     .section = "Two hosts",
     .type = SL_OPTION_STRING,
     .offset = offsetof(perf_options, connect),
     .help = "client: the server's control address"},
    {.name = "skip-raw",
     .section = "Measurement",
     .type = SL_OPTION_BOOL,
     .offset = offsetof(perf_options, skip_raw),
     .default_text = "false",
     .help = "kvtransfer alone, for a profile (the figures of raw UCX are then 0)"},
    {.name = "raw-spin",
     .section = "Measurement",
     .type = SL_OPTION_BOOL,
     .offset = offsetof(perf_options, raw_spin),
     .default_text = "false",
     .help = "raw UCX polls without a break (else it waits as kvtransfer's thread does)"},
    {.name = "steps",
     .section = "Measurement",
     .type = SL_OPTION_BOOL,
     .offset = offsetof(perf_options, steps),
     .default_text = "false",
     .help = "a turn for each line of stdin (plain, checked, am, put); prints its seconds"},
    {.name = "json",
     .section = "Output",
     .type = SL_OPTION_BOOL,
     .offset = offsetof(perf_options, json),
     .default_text = "false",
     .help = "one JSON object"},
};

static const sl_config_spec spec = {
    .program = "kvt-perf",
    .summary = "moves pages between two processes: kvtransfer beside raw UCX",
    .positional = "local|server|client",
    .options = option_table,
    .option_count = sizeof option_table / sizeof option_table[0],
};

/* This program again as the server, before UCX starts here. */
static sl_status local(const perf_options *o, sl_err *err)
{
    int out[2];
    char address[SL_ADDRESS_TEXT_MAX];
    if (pipe(out) != 0)
        return sl_fail_errno(err, SL_IO, "create a pipe");
    pid_t pid = fork();
    if (pid < 0)
        return sl_fail_errno(err, SL_IO, "start the server");
    if (pid == 0) {
        dup2(out[1], 1);
        close(out[0]);
        close(out[1]);
        execl("/proc/self/exe", "kvt-perf", "server", (char *)NULL);
        _exit(127);
    }
    close(out[1]);
    FILE *from = fdopen(out[0], "r");
    sl_status status = sl_ok();
    if (!fgets(address, sizeof address, from))
        status = sl_fail(err, SL_UNAVAILABLE, "the server process did not start");
    address[strcspn(address, "\n")] = 0;
    fclose(from);
    if (sl_is_ok(status))
        status = perf_client(o, address, err);
    if (!sl_is_ok(status))
        kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    return status;
}

int main(int argc, char **argv)
{
    perf_options o;
    sl_config *config = NULL;
    sl_err err = {.code = SL_OK};
    int exit_code = 0;
    if (sl_config_parse(&spec, argc, argv, &o, &config, &exit_code) == SL_CONFIG_EXIT)
        return exit_code;
    const char *what =
        sl_config_positional_count(config) == 1 ? sl_config_positional(config, 0) : "";
    sl_status status = sl_ok();
    signal(SIGPIPE, SIG_IGN);
    setenv("UCX_TLS", o.transport == 0 ? "shm,tcp,self" : "tcp,self", 0);
    if (strcmp(what, "local") == 0) {
        status = local(&o, &err);
    } else if (strcmp(what, "server") == 0) {
        status = perf_server(&o, &err);
    } else if (strcmp(what, "client") == 0 && o.connect) {
        status = perf_client(&o, o.connect, &err);
    } else {
        fprintf(stderr, "kvt-perf: say local, server, or client --connect HOST:PORT\n");
        exit_code = 2;
    }
    if (!sl_is_ok(status)) {
        fprintf(stderr, "kvt-perf: %s\n", err.text);
        exit_code = 1;
    }
    sl_config_destroy(config);
    return exit_code;
}

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
    {"transport", "Measurement", SL_OPTION_CHOICE, offsetof(perf_options, transport), "shm",
     "UCX's: shared memory or tcp (UCX_TLS in the environment has the last word)", 0, 0,
     perf_transports, false},
    {"kv-transport", "Measurement", SL_OPTION_CHOICE, offsetof(perf_options, kv_transport), "ucx",
     "kvtransfer's: UCX, or plain tcp sockets", 0, 0, perf_kv_transports, false},
    {"pages", "Measurement", SL_OPTION_INT, offsetof(perf_options, pages), "1024",
     "pieces in memory; together more than the caches hold", 1, KVT_PIECES_MAX, NULL, false},
    {"piece", "Measurement", SL_OPTION_BYTES, offsetof(perf_options, piece), "403456",
     "bytes of a piece", 0, 0, NULL, false},
    {"turn", "Measurement", SL_OPTION_BYTES, offsetof(perf_options, turn), "32MiB",
     "bytes of one turn, the next in memory each time (0: all)", 0, 0, NULL, false},
    {"rounds", "Measurement", SL_OPTION_INT, offsetof(perf_options, rounds), "25",
     "turns of each kind; medians count", 1, PERF_ROUNDS_MAX, NULL, false},
    {"groups", "Tail", SL_OPTION_INT, offsetof(perf_options, groups), "0",
     "measure the time from the last of so many groups to the end instead (0: do not)", 0,
     KVT_GROUPS_MAX, NULL, false},
    {"group-ms", "Tail", SL_OPTION_INT, offsetof(perf_options, group_ms), "20",
     "milliseconds that a group takes to compute", 1, 10000, NULL, false},
    {"listen", "Two hosts", SL_OPTION_STRING, offsetof(perf_options, listen), "127.0.0.1:0",
     "server: control address; port 0: any, printed", 0, 0, NULL, false},
    {"connect", "Two hosts", SL_OPTION_STRING, offsetof(perf_options, connect), NULL,
     "client: the server's control address", 0, 0, NULL, false},
    {"skip-raw", "Measurement", SL_OPTION_BOOL, offsetof(perf_options, skip_raw), "false",
     "kvtransfer alone, for a profile (the figures of raw UCX are then 0)", 0, 0, NULL, false},
    {"raw-spin", "Measurement", SL_OPTION_BOOL, offsetof(perf_options, raw_spin), "false",
     "raw UCX polls without a break (else it waits as kvtransfer's thread does)", 0, 0, NULL,
     false},
    {"steps", "Measurement", SL_OPTION_BOOL, offsetof(perf_options, steps), "false",
     "a turn for each line of stdin (plain, checked, am, put); prints its seconds", 0, 0, NULL,
     false},
    {"json", "Output", SL_OPTION_BOOL, offsetof(perf_options, json), "false", "one JSON object", 0,
     0, NULL, false},
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
    setenv("UCX_TLS", o->transport == 0 ? "shm,tcp,self" : "tcp,self", 0);
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

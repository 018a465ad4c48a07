/* Fault sites. Owns the table of armed sites, written once by sl_fault_init before threads start;
 * afterwards only hit counters move (atomics). Any thread. The one place that may sleep. */
#include "base/fault.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"

#define RULES_MAX    32
#define SITE_MAX     64
#define SLOW_MS_MAX  600000
#define HOLD_POLL_MS 5

typedef enum fault_action { FAULT_FAIL, FAULT_EXIT, FAULT_HOLD, FAULT_SLOW } fault_action;

typedef struct fault_rule {
    char site[SITE_MAX];
    fault_action action;
    uint64_t first, count; /* fires on hits first .. first + count - 1 */
    uint64_t slow_ms;
    _Atomic uint64_t hits;
} fault_rule;

static fault_rule rules[RULES_MAX];
static _Atomic size_t rule_count;
static _Atomic unsigned release_generation; /* lock-free: written by the signal handler */

static void on_release(int signal_number)
{
    atomic_fetch_add(&release_generation, 1);
}

static bool parse_number(const char **at, uint64_t max, uint64_t *out_value)
{
    char *end;
    if (**at < '0' || **at > '9')
        return false;
    unsigned long long value = strtoull(*at, &end, 10);
    if (value > max)
        return false;
    *at = end;
    *out_value = value;
    return true;
}

static bool parse_action(const char **at, fault_rule *rule)
{
    static const struct {
        const char *word;
        fault_action action;
    } words[] = {
        {"fail", FAULT_FAIL}, {"exit", FAULT_EXIT}, {"hold", FAULT_HOLD}, {"slow=", FAULT_SLOW}};
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        size_t length = strlen(words[i].word);
        if (strncmp(*at, words[i].word, length) == 0) {
            *at += length;
            rule->action = words[i].action;
            return rule->action != FAULT_SLOW || parse_number(at, SLOW_MS_MAX, &rule->slow_ms);
        }
    }
    return false;
}

/* "action[@nth][xcount]"; neither: every hit; only @nth: that hit. */
static bool parse_rule(const char *at, fault_rule *rule)
{
    rule->first = 1;
    rule->count = UINT64_MAX;
    if (!parse_action(&at, rule))
        return false;
    if (*at == '@') {
        at++;
        rule->count = 1;
        if (!parse_number(&at, INT64_MAX, &rule->first) || rule->first == 0)
            return false;
    }
    if (*at == 'x') {
        at++;
        if (!parse_number(&at, INT64_MAX, &rule->count) || rule->count == 0)
            return false;
    }
    return *at == '\0';
}

static bool site_known(const char *const *sites, const char *site)
{
    for (; *sites; sites++)
        if (strcmp(*sites, site) == 0)
            return true;
    return false;
}

static sl_status add_rule(const char *const *sites, const char *text, size_t size, sl_err *err)
{
    char copy[160];
    size_t count = atomic_load(&rule_count);
    fault_rule *rule = &rules[count < RULES_MAX ? count : 0];
    if (size >= sizeof(copy))
        return sl_fail(err, SL_INVALID, "fault \"%.40s...\" is too long", text);
    memcpy(copy, text, size);
    copy[size] = '\0';
    char *equals = strchr(copy, '=');
    if (!equals || equals == copy || (size_t)(equals - copy) >= SITE_MAX)
        return sl_fail(err, SL_INVALID, "fault \"%s\": write site=action", copy);
    *equals = '\0';
    if (!site_known(sites, copy))
        return sl_fail(err, SL_INVALID, "fault site \"%s\" is unknown here", copy);
    if (count == RULES_MAX)
        return sl_fail(err, SL_TOO_LARGE, "more than %d faults", RULES_MAX);
    memset(rule, 0, sizeof(*rule));
    memcpy(rule->site, copy, strlen(copy) + 1);
    if (!parse_rule(equals + 1, rule))
        return sl_fail(err, SL_INVALID,
                       "fault \"%s\": action \"%s\" is not fail, exit, hold or slow=MS with "
                       "[@nth][xcount]",
                       copy, equals + 1);
    atomic_store(&rule_count, count + 1);
    return sl_ok();
}

sl_status sl_fault_init(const char *const *sites, const char *spec, sl_err *err)
{
    atomic_store(&rule_count, 0);
    while (spec && *spec) {
        size_t size = strcspn(spec, ";");
        if (size > 0) {
            sl_status status = add_rule(sites, spec, size, err);
            if (!sl_is_ok(status)) {
                atomic_store(&rule_count, 0);
                return status;
            }
        }
        spec += size + (spec[size] == ';');
    }
    for (size_t i = 0; i < atomic_load(&rule_count); i++) {
        if (rules[i].action == FAULT_HOLD) {
            struct sigaction action = {.sa_handler = on_release, .sa_flags = SA_RESTART};
            sigemptyset(&action.sa_mask);
            if (sigaction(SIGUSR2, &action, NULL) != 0)
                return sl_fail_errno(err, SL_IO, "catch SIGUSR2");
        }
    }
    return sl_ok();
}

static void sleep_ms(uint64_t ms)
{
    struct timespec left = {(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};
    while (nanosleep(&left, &left) != 0)
        continue;
}

static bool fire(fault_rule *rule, uint64_t hit)
{
    static const char *const names[] = {"fail", "exit", "hold", "slow"};
    /* Read before the line is written: whoever saw it may release at once. */
    unsigned generation = atomic_load(&release_generation);
    /* A fault is only armed by a test, and the test wants to see it: so a library logs here. */
    sl_warn("fault %s: %s at hit %llu", rule->site, names[rule->action], (unsigned long long)hit);
    switch (rule->action) {
    case FAULT_FAIL:
        return true;
    case FAULT_EXIT:
        _exit(86);
    case FAULT_HOLD:
        while (atomic_load(&release_generation) == generation)
            sleep_ms(HOLD_POLL_MS);
        sl_warn("fault %s: released", rule->site);
        return false;
    case FAULT_SLOW:
        sleep_ms(rule->slow_ms);
        return false;
    }
    return false;
}

bool sl_fault(const char *site)
{
    size_t count = atomic_load_explicit(&rule_count, memory_order_acquire);
    bool failed = false;
    for (size_t i = 0; i < count; i++) {
        fault_rule *rule = &rules[i];
        if (strcmp(rule->site, site) != 0)
            continue;
        uint64_t hit = atomic_fetch_add(&rule->hits, 1) + 1;
        if (hit >= rule->first && hit - rule->first < rule->count)
            failed |= fire(rule, hit);
    }
    return failed;
}

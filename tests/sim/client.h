/* The clients: what they ask, what they must hear.
 *
 * Every request knows its answer beforehand. Its client checks each token as it comes, and that the
 * answer ends exactly once. */
#ifndef TESTS_SIM_CLIENT_H
#define TESTS_SIM_CLIENT_H

#include "model/sampling.h"
#include "tests/sim/http.h"

#define SIM_REQUESTS_MAX 512u
#define SIM_CHOICES_MAX  3u
#define SIM_TOKENS_MAX   160u
#define SIM_PROMPT_MAX   448u

typedef enum sim_outcome {
    SIM_WAITING,
    SIM_ANSWERED,
    SIM_REFUSED, /* an error, told clearly */
    SIM_BROKEN,  /* its router died */
    SIM_HUNG_UP, /* the client went */
} sim_outcome;

typedef struct sim_choice {
    uint32_t expected[SIM_TOKENS_MAX];
    uint32_t expected_count;
    bool stops; /* with EOS, else at max_tokens */
    uint32_t got;
    bool finished, finished_by_stop;
} sim_choice;

typedef struct sim_request {
    uint32_t number;
    sim_process *router;
    sim_http_call *call;
    bool stream;
    uint32_t prompt_count;
    uint32_t prompt[SIM_PROMPT_MAX];
    mdl_sampling sampling;
    uint32_t choice_count;
    sim_choice choices[SIM_CHOICES_MAX];
    sl_buf text; /* what came and is not parsed */
    bool done_line, error_told;
    sim_outcome outcome;
    int status;
    bool must_succeed; /* nothing is wrong any more */
    sl_time_ns asked_at, first_token_at, ended_at;
    uint32_t comments;               /* of a stream that had nothing to send */
    sl_time_ns comment_at, heard_at; /* the last one; the last of anything */
    uint32_t faults_before;          /* counted when it was asked */
} sim_request;

typedef struct sim_load { /* what clients do */
    uint32_t requests;
    sl_time_ns first_at, last_at;
    uint32_t prompt_min, prompt_max, tokens_min, tokens_max;
    uint32_t hang_up_ppm, slow_ppm;
    bool calm; /* nobody hangs up or reads slowly, every request must be answered */
} sim_load;

typedef struct sim_clients {
    sim_request *requests[SIM_REQUESTS_MAX];
    uint32_t count, open;
    uint32_t answered, refused, broken, hung_up;
    uint64_t tokens;
} sim_clients;

extern sim_clients sim_cls;

void sim_clients_init(void);
void sim_clients_fini(void);
/* Posts requests at drawn times between first_at and last_at. */
void sim_clients_plan(const sim_load *load);
/* One request, asked now. */
sim_request *sim_clients_ask(const sim_load *load, sim_process *router);
void sim_clients_hang_up(sim_request *request);

#endif

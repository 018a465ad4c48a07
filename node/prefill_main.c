/* sluice-prefill: a node whose default role is prefill. */
#include "node/host.h"

int main(int argc, char **argv)
{
    return nod_main(NOD_ROLE_PREFILL, argc, argv);
}

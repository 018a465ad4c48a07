/* sluice-decode: a node whose default role is decode. */
#include "node/host.h"

int main(int argc, char **argv)
{
    return nod_main(NOD_ROLE_DECODE, argc, argv);
}

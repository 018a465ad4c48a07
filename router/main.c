/* sluice-router: see router/router.h. */
#include "router/router.h"

int main(int argc, char **argv)
{
    return rtr_main(argc, argv);
}

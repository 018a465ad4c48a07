/* Addresses and sockets: "host:port" with IPv4, [IPv6] or a name; port 0 = any free one. Thread:
 * any. */
#ifndef BASE_NET_H
#define BASE_NET_H

#include <sys/socket.h>

#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SL_ADDRESS_TEXT_MAX 280 /* "host:port" */

/* Form only, nothing is looked up: a name or an IP address, and a port. out_wildcard (may be NULL):
 * all interfaces. passive: as below. */
SL_MUST_USE sl_status sl_net_check(const char *text, bool passive, bool *out_wildcard, sl_err *err);
/* All interfaces. */
bool sl_net_is_wildcard(const struct sockaddr *address);
/* Resolves the first address; passive allows an empty host (":8080" = all interfaces). Errors name
 * the text. */
SL_MUST_USE sl_status sl_net_resolve(const char *text, bool passive,
                                     struct sockaddr_storage *out_address, socklen_t *out_size,
                                     sl_err *err);
/* Non-blocking, close-on-exec listener. reuse_port: several loops share the port. "address already
 * in use" names the address. */
SL_MUST_USE sl_status sl_net_listen(const char *text, bool reuse_port, int *out_fd,
                                    char out_bound[SL_ADDRESS_TEXT_MAX], sl_err *err);
void sl_net_format(const struct sockaddr *address, char out_text[SL_ADDRESS_TEXT_MAX]);

#ifdef __cplusplus
}
#endif
#endif

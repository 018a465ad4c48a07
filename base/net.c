/* Addresses and listening sockets. Owns nothing; any thread; names may be looked up, which blocks:
 * only at start. */
#include "base/net.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define HOST_MAX        256
#define NAME_CHARACTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_"

/* Splits "host:port", "[v6]:port" and, if passive, ":port". */
static sl_status split(const char *text, bool passive, char out_host[HOST_MAX], char out_port[8],
                       sl_err *err)
{
    const char *colon = strrchr(text, ':');
    const char *host = text, *host_end = colon;
    if (!colon)
        return sl_fail(err, SL_INVALID, "address \"%s\": write host:port", text);
    if (*text == '[') {
        host = text + 1;
        host_end = strchr(text, ']');
        if (!host_end || host_end + 1 != colon)
            return sl_fail(err, SL_INVALID, "address \"%s\": write [IPv6]:port", text);
    } else if (memchr(text, ':', (size_t)(colon - text))) {
        return sl_fail(err, SL_INVALID, "address \"%s\": put an IPv6 host in brackets", text);
    }
    size_t host_size = (size_t)(host_end - host), port_size = strlen(colon + 1);
    if (host_size >= HOST_MAX)
        return sl_fail(err, SL_INVALID, "address \"%.40s...\": the host is too long", text);
    if (port_size == 0 || port_size > 5 || strspn(colon + 1, "0123456789") != port_size ||
        strtol(colon + 1, NULL, 10) > 65535)
        return sl_fail(err, SL_INVALID, "address \"%s\": the port must be 0 to 65535", text);
    if (host_size == 0 && !passive)
        return sl_fail(err, SL_INVALID, "address \"%s\": the host is missing", text);
    memcpy(out_host, host, host_size);
    out_host[host_size] = '\0';
    memcpy(out_port, colon + 1, port_size + 1);
    return sl_ok();
}

/* As getaddrinfo, with its return value. An empty host: all interfaces. */
static int look_up(const char *host, const char *port, int flags, struct addrinfo **out_list)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV | flags};
    return getaddrinfo(host[0] ? host : NULL, port, &hints, out_list);
}

bool sl_net_is_wildcard(const struct sockaddr *address)
{
    if (address->sa_family == AF_INET)
        return ((const struct sockaddr_in *)address)->sin_addr.s_addr == htonl(INADDR_ANY);
    return address->sa_family == AF_INET6 &&
           IN6_IS_ADDR_UNSPECIFIED(&((const struct sockaddr_in6 *)address)->sin6_addr);
}

sl_status sl_net_check(const char *text, bool passive, bool *out_wildcard, sl_err *err)
{
    char host[HOST_MAX], port[8];
    struct addrinfo *list = NULL;
    bool wildcard = false;
    SL_TRY(split(text, passive, host, port, err));
    if (look_up(host, port, AI_NUMERICHOST | AI_PASSIVE, &list) == 0) {
        wildcard = sl_net_is_wildcard(list->ai_addr);
        freeaddrinfo(list);
    } else if (text[0] == '[' || host[strspn(host, NAME_CHARACTERS)] != '\0' ||
               host[strspn(host, "0123456789.")] == '\0') {
        return sl_fail(err, SL_INVALID,
                       "address \"%s\": the host is neither an IP address nor a name", text);
    }
    if (out_wildcard)
        *out_wildcard = wildcard;
    return sl_ok();
}

sl_status sl_net_resolve(const char *text, bool passive, struct sockaddr_storage *out_address,
                         socklen_t *out_size, sl_err *err)
{
    char host[HOST_MAX], port[8];
    struct addrinfo *list = NULL;
    SL_TRY(split(text, passive, host, port, err));
    int rc = look_up(host, port, passive ? AI_PASSIVE : 0, &list);
    if (rc != 0)
        return sl_fail(err, SL_UNAVAILABLE, "address \"%s\": %s", text,
                       rc == EAI_SYSTEM ? strerror(errno) : gai_strerror(rc));
    memset(out_address, 0, sizeof(*out_address));
    memcpy(out_address, list->ai_addr, list->ai_addrlen);
    *out_size = list->ai_addrlen;
    freeaddrinfo(list);
    return sl_ok();
}

void sl_net_format(const struct sockaddr *address, char out_text[SL_ADDRESS_TEXT_MAX])
{
    char host[INET6_ADDRSTRLEN] = "?";
    if (address->sa_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)address;
        inet_ntop(AF_INET, &in->sin_addr, host, sizeof(host));
        snprintf(out_text, SL_ADDRESS_TEXT_MAX, "%s:%u", host, ntohs(in->sin_port));
    } else if (address->sa_family == AF_INET6) {
        const struct sockaddr_in6 *in = (const struct sockaddr_in6 *)address;
        inet_ntop(AF_INET6, &in->sin6_addr, host, sizeof(host));
        snprintf(out_text, SL_ADDRESS_TEXT_MAX, "[%s]:%u", host, ntohs(in->sin6_port));
    } else {
        snprintf(out_text, SL_ADDRESS_TEXT_MAX, "family %d", address->sa_family);
    }
}

sl_status sl_net_listen(const char *text, bool reuse_port, int *out_fd,
                        char out_bound[SL_ADDRESS_TEXT_MAX], sl_err *err)
{
    struct sockaddr_storage address;
    socklen_t size;
    int one = 1;
    SL_TRY(sl_net_resolve(text, true, &address, &size, err));
    int fd = socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return sl_fail_errno(err, SL_IO, "listen on %s", text);
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) != 0 ||
        (reuse_port && setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one)) != 0) ||
        bind(fd, (struct sockaddr *)&address, size) != 0 || listen(fd, SOMAXCONN) != 0)
        goto err_close;
    size = sizeof(address);
    if (getsockname(fd, (struct sockaddr *)&address, &size) != 0)
        goto err_close;
    if (out_bound)
        sl_net_format((struct sockaddr *)&address, out_bound);
    *out_fd = fd;
    return sl_ok();
err_close:;
    sl_code code = errno == EADDRINUSE ? SL_EXISTS : SL_IO;
    sl_status status = sl_fail_errno(err, code, "listen on %s", text);
    close(fd);
    return status;
}

/* Certificates: whose they are, what they may call, and the files that a process shows its own
 * from.
 *
 * A certificate's subject says who it is: common name, and as organisational unit the role: client
 * (reads), operator (acts on nodes and cluster) or node (routers and nodes among each other).
 * Nodes' certificates are for the name RPC_TLS_NODE_NAME whatever their address, so that only a
 * node can stand for a node. Thread: any. */
#ifndef RPC_TLS_H
#define RPC_TLS_H

#include "rpc/method.h"
#include "rpc/runtime.h"

#ifdef __cplusplus
extern "C" {
#endif

#define RPC_TLS_NODE_NAME "node.sluice.internal"
#define RPC_TLS_FILE_MAX  (256u << 10)
#define RPC_IDENTITY_MAX  65 /* bytes of a common name, with the NUL */

typedef enum rpc_role { /* bits */
                        RPC_ROLE_CLIENT = 1,
                        RPC_ROLE_OPERATOR = 2,
                        RPC_ROLE_NODE = 4,
} rpc_role;

typedef struct rpc_identity {
    char name[RPC_IDENTITY_MAX];
    unsigned role; /* 0: the certificate names none that we know */
} rpc_identity;

/* "client", "operator", "node"; "nobody" for 0. */
const char *rpc_role_name(unsigned role);
/* false: unknown. */
bool rpc_role_parse(const char *text, unsigned *out_role);
/* SL_INVALID: no certificate. */
SL_MUST_USE sl_status rpc_identity_of(const char *pem, rpc_identity *out_identity, sl_err *err);
/* The roles that may call a method. */
unsigned rpc_method_roles(const rpc_method *method);

typedef struct rpc_tls_files { /* NULL or "": not given */
    const char *cert, *key, *ca;
} rpc_tls_files;

typedef struct rpc_tls_store rpc_tls_store;

/* Reads and checks them: the key is the certificate's, the certificate is the CA's and valid now.
 * All absent: *out_store NULL, plain text. Only ca: a client without a certificate. The text names
 * the option, as "--<prefix>-cert", and the file. */
SL_MUST_USE sl_status rpc_tls_open(const rpc_tls_files *files, const char *prefix,
                                   rpc_tls_store **out_store, sl_err *err);
/* Borrowed; NULL for NULL. For connections to our own kind: expects a node. */
const rpc_tls *rpc_tls_get(const rpc_tls_store *store);
const rpc_identity *rpc_tls_identity(const rpc_tls_store *store);
void rpc_tls_close(rpc_tls_store *store);
/* What a connection that failed with this text has to do with certificates; "": nothing. */
const char *rpc_tls_hint(const char *text, bool by_tls);

#ifdef __cplusplus
}
#endif
#endif

/* See trust.h. Owns what the files held. */
#include "cluster/trust.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/secret.h"

#define PASSWORD_MAX 256

struct clu_trust {
    rpc_tls_store *own, *etcd;
    rpc_tls etcd_tls;
    char user[CLU_ETCD_USER_MAX];
    char password[PASSWORD_MAX];
};

static bool given(const char *text)
{
    return text && *text;
}

static sl_status open_all(clu_trust *trust, const clu_trust_options *options, sl_err *err)
{
    rpc_tls_files own = {options->tls_cert, options->tls_key, options->tls_ca};
    rpc_tls_files etcd = {options->etcd_cert, options->etcd_key, options->etcd_ca};
    SL_TRY(rpc_tls_open(&own, "tls", &trust->own, err));
    SL_TRY(rpc_tls_open(&etcd, "etcd", &trust->etcd, err));
    if (trust->etcd) {
        trust->etcd_tls = *rpc_tls_get(trust->etcd);
        trust->etcd_tls.server_name = NULL; /* etcd's certificates are for its addresses */
    }
    if (given(options->etcd_user) != given(options->etcd_password_file))
        return sl_fail(err, SL_INVALID, "--etcd-user and --etcd-password-file go together");
    if (!given(options->etcd_user))
        return sl_ok();
    if (strlen(options->etcd_user) >= sizeof(trust->user))
        return sl_fail(err, SL_TOO_LARGE, "--etcd-user: over %zu bytes", sizeof(trust->user) - 1);
    snprintf(trust->user, sizeof(trust->user), "%s", options->etcd_user);
    return sl_secret_read("--etcd-password-file", options->etcd_password_file, 1, trust->password,
                          sizeof(trust->password), err);
}

sl_status clu_trust_open(const clu_trust_options *options, clu_trust **out_trust, sl_err *err)
{
    clu_trust *trust = sl_alloc(1, sizeof(*trust), "trust");
    sl_status status = open_all(trust, options, err);
    if (!sl_is_ok(status)) {
        clu_trust_close(trust);
        return status;
    }
    *out_trust = trust;
    return status;
}

void clu_trust_close(clu_trust *trust)
{
    if (!trust)
        return;
    rpc_tls_close(trust->own);
    rpc_tls_close(trust->etcd);
    explicit_bzero(trust->password, sizeof(trust->password));
    sl_free(trust);
}

const rpc_tls *clu_trust_tls(const clu_trust *trust)
{
    return rpc_tls_get(trust->own);
}

sl_status clu_trust_check_role(const clu_trust *trust, unsigned roles, sl_err *err)
{
    if (!trust->own)
        return sl_ok();
    const rpc_identity *identity = rpc_tls_identity(trust->own);
    if (identity->role & roles)
        return sl_ok();
    return sl_fail(err, SL_INVALID,
                   "--tls-cert is %s's of role %s: here one of role node is needed (its "
                   "subject's organisational unit says it)",
                   identity->name[0] ? identity->name : "nobody", rpc_role_name(identity->role));
}

void clu_trust_etcd(const clu_trust *trust, clu_etcd_options *options)
{
    options->tls = trust->etcd ? &trust->etcd_tls : NULL;
    options->user = trust->user[0] ? trust->user : NULL;
    options->password = trust->password;
}

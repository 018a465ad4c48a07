/* See space.h. */
#include "router/space.h"

#include "base/assert.h"
#include "base/rng.h"
#include "base/secret.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdio.h>
#include <string.h>

/* What is made of the secret, each by a name of its own. */
static const char KEY_NAME[] = "sluice cache space", MARK_NAME[] = "sluice secret mark";
static const uint64_t OPEN_KEY[2] = {0x63616368655f7361ull, 0x6c745f7370616365ull};

static void derive(const char *secret, const char *name, unsigned char out_digest[EVP_MAX_MD_SIZE])
{
    const void *made = HMAC(EVP_sha256(), secret, (int)strlen(secret), (const unsigned char *)name,
                            strlen(name), out_digest, NULL);
    sl_assert(made); /* SHA-256 is always there */
}

void rtr_space_key_make(const char *secret, rtr_space_key *out_key)
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    *out_key = (rtr_space_key){.secret = true};
    derive(secret, KEY_NAME, digest);
    memcpy(out_key->words, digest, sizeof out_key->words);
    derive(secret, MARK_NAME, digest);
    for (size_t i = 0; i < (sizeof out_key->mark - 1) / 2; i++)
        snprintf(out_key->mark + 2 * i, 3, "%02x", digest[i]);
    explicit_bzero(digest, sizeof digest);
}

sl_status rtr_space_key_read(const char *path, rtr_space_key *out_key, sl_err *err)
{
    char secret[RTR_SECRET_BYTES_MAX + 1];
    *out_key = (rtr_space_key){0};
    if (!path)
        return sl_ok();
    SL_TRY(sl_secret_read("--cluster-secret-file", path, RTR_SECRET_BYTES_MIN, secret,
                          sizeof secret, err));
    rtr_space_key_make(secret, out_key);
    explicit_bzero(secret, sizeof secret);
    return sl_ok();
}

uint64_t rtr_space(const rtr_space_key *key, const char *salt, size_t salt_bytes)
{
    if (key->secret)
        return sl_siphash(key->words, salt, salt_bytes);
    return salt_bytes > 0 ? sl_siphash(OPEN_KEY, salt, salt_bytes) : 0;
}

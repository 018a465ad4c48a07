/* The only user of gRPC core. Start with runtime.h (threads), then client.h and server.h; methods.h
 * lists every rpc; message.h says who frees what. */
#ifndef RPC_RPC_H
#define RPC_RPC_H

#include "rpc/client.h"
#include "rpc/message.h"
#include "rpc/method.h"
#include "rpc/methods.h"
#include "rpc/runtime.h"
#include "rpc/server.h"
#include "rpc/status_map.h"

#endif

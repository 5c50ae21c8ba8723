/* The common operations as plain calls. */
#include <perigee/group.h>

static int run_one(perigee_group *group, int op, perigee_tensor *tensor, int root,
                   perigee_redop_kind kind) {
  perigee_request req;
  perigee_request_init(&req, op);
  req.in = (perigee_tensors){&tensor, 1, 0};
  req.root = root;
  req.redop.kind = kind;
  return perigee_group_run(group, &req);
}

int perigee_allreduce(perigee_group *group, perigee_tensor *tensor, perigee_redop_kind op) {
  return run_one(group, PERIGEE_OP_ALLREDUCE, tensor, 0, op);
}

int perigee_broadcast(perigee_group *group, perigee_tensor *tensor, int root) {
  return run_one(group, PERIGEE_OP_BROADCAST, tensor, root, PERIGEE_REDOP_SUM);
}

int perigee_reduce(perigee_group *group, perigee_tensor *tensor, int root, perigee_redop_kind op) {
  return run_one(group, PERIGEE_OP_REDUCE, tensor, root, op);
}

int perigee_allgather_into_tensor(perigee_group *group, perigee_tensor *out, perigee_tensor *in) {
  perigee_request req;
  perigee_request_init(&req, PERIGEE_OP_ALLGATHER_INTO_TENSOR);
  req.out = (perigee_tensors){&out, 1, 0};
  req.in = (perigee_tensors){&in, 1, 0};
  return perigee_group_run(group, &req);
}

int perigee_barrier(perigee_group *group) {
  perigee_request req;
  perigee_request_init(&req, PERIGEE_OP_BARRIER);
  return perigee_group_run(group, &req);
}

int perigee_send(perigee_group *group, perigee_tensor *tensor, int dst, int64_t tag) {
  perigee_request req;
  perigee_request_init(&req, PERIGEE_OP_SEND);
  req.in = (perigee_tensors){&tensor, 1, 0};
  req.peer = dst;
  req.tag = tag;
  return perigee_group_run(group, &req);
}

int perigee_recv(perigee_group *group, perigee_tensor *tensor, int src, int64_t tag) {
  perigee_request req;
  perigee_request_init(&req, PERIGEE_OP_RECV);
  req.out = (perigee_tensors){&tensor, 1, 0};
  req.peer = src;
  req.tag = tag;
  return perigee_group_run(group, &req);
}

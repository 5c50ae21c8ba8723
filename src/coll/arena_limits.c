/*
 * Where one path of the shared-memory engine ends and the next begins: the built-in rules (select.h), measured on 2 cores (Xeon, 2 MiB L2
 * each, shared L3). A rule whose path cannot be taken is passed over, so the more special path stands first.
 *
 *   oneshot    everybody reduces everything (spin), or the last to arrive does (park); beyond, slices
 *   cma        of a reduce by its root alone: between 8 and 256 KiB; then copying and reducing at the same time wins, until memory is the
 *              limit (caches are too small). Of an allreduce only there; a core for each rank. Of blocks: they are read where they are
 *   symmetric  the same in symmetric memory, and reductions there
 *   buffers    blocks are copied through buffers
 *   past_caches  what a rank copies into its outputs goes past the caches (tensor/copy.h) when its tensors have this many bytes
 *   slow       where reading another process's memory takes several times as long as copying: buffers instead, unless one rank would have to
 *              copy for many that can read at the same time
 * Ends are not included: 33k is "up to 32 KiB".
 *
 * With more ranks than cores what counts is how often a rank waits for one that has no core: the copy that lets a root or sender go at once
 * is worth it up to some size. Broadcast, 4 and 8 ranks, us, in symmetric memory : through buffers: 64K 5.7:7.5, 12.9:13.9; 256K 14:21, 32:26;
 * 512K 67:44, 134:52; 1M 160:124, 260:217; 4M 510:583, 987:1237.
 * Broadcast, gather and allgather, us for blocks of a size, by system call : through buffers. A core that reads from the other's cache what that has just
 * copied is quicker, from some MiB on, than one that reads memory by itself; with more ranks than cores a lender waits too long.
 *   broadcast  2 ranks 64K 3.4:11, 1M 51:82, 2M 169:183, 4M 352:326, 16M 1493:1265, 32M 4063:2622; 4 ranks 64K 23:12, 256K 77:30, 1M
 *              300:135; 8 ranks 64K 35:26, 256K 159:57, 1M 459:300, 16M 10032:7713
 *   gather     2 ranks 256K 15:28, 512K 44:54, 1M 159:132, 16M 3061:2440, 32M 10286:7571; 4 ranks 64K 41:19, 256K 103:69, 1M 396:403, 4M
 *              1385:1657; 8 ranks 256K 290:231, 1M 852:1055, 4M 4641:6100
 *   allgather  2 ranks 64K 6:9, 1M 155:198, 16M 4091:4368; 4 ranks 64K 29:28, 256K 134:146, 1M 622:675; 8 ranks 64K 183:116, 256K 734:535, 1M
 *              3233:2649, 16M 95601:75129
 * The same where reading is slow (EPYC, 2 cores, 512 KiB L2):
 *   broadcast  2 ranks 64K 8.6:7.1, 1M 126:55, 16M 5524:2809
 *   allgather  2 ranks 64K 12:11, 16M 13184:10965; 4 ranks 64K 80:40, 256K 268:110, 16M 51029:25411
 *   alltoall   2 ranks 64K 10:7.6, 16M 10730:8195; 4 ranks 64K 89:41, 256K 246:245, 16M 56187:37604; 8 ranks 64K 393:300, 16M 165:156 ms
 *   gather     2 ranks 64K 12:9, 1M 160:89; 4 ranks 1M 559:305, 16M 19400:11837; 8 ranks 16M 34452:25107
 *   scatter    2 ranks 64K 8.5:6.5, 16M 6575:7127; 4 ranks 64K 30:26, 1M 282:679; 8 ranks 64K 69:133, 1M 824:2663
 *   reduce     2 ranks 64K 12.8:8.2, 1M 162:70, 16M 8786:2507
 */
#include "coll/select.h"

#ifdef PERIGEE_HOSTILE
#define PAST ";past_caches=256"
#else
#define PAST "" /* as the machine's caches are: perigee__copy_past_from */
#endif

const char perigee__arena_rules[] =
    "allreduce/spin:2k-:symmetric;"
    "allreduce/spin/quick:4m-:cma;"
    "allreduce/spin@0-2:0-33k:oneshot;"
    "allreduce/spin@3-4:0-17k:oneshot;"
    "allreduce/spin@5-8:0-9k:oneshot;"
    "allreduce/spin@9-16:0-5k:oneshot;"
    "allreduce/spin:0-2k:oneshot,0-:twoshot;"
    "allreduce/park:16k-:symmetric,0-65k:oneshot,0-:twoshot;"
    "reduce/spin/slow@0-3:2k-:symmetric,0-:root;"
    "reduce/spin@0-3:2k-:symmetric,8k-257k:cma,4m-:cma,0-:root;"
    "reduce/spin:2k-:symmetric,0-65k:root,0-:twoshot;"
    "reduce/park@0-3:16k-:symmetric,0-:root;"
    "reduce/park:16k-:symmetric,0-129k:root,0-:twoshot;"
    "reduce_scatter/spin:2k-:symmetric,0-:buffers;"
    "reduce_scatter/park:16k-:symmetric,0-:buffers;"
    "broadcast/spin/slow:4k-:symmetric,0-:buffers;"
    "broadcast/spin:8k-:symmetric,8k-3073k:cma,0-:buffers;"
    "broadcast/park@0-4:64k-257k:symmetric,2m-:symmetric,0-:buffers;"
    "broadcast/park:2m-:symmetric,0-:buffers;"
    "gather/spin/quick@0-2:8k-:symmetric,8k-769k:cma,0-:buffers;"
    "gather/park/slow:64k-:symmetric,0-:buffers;"
    "gather/park:64k-:symmetric,768k-:cma,0-:buffers;"
    "allgather/park/quick@0-4:64k-:symmetric,64k-:cma,0-:buffers;"
    "allgather/park:64k-:symmetric,0-:buffers;"
    "alltoall/park/slow:64k-:symmetric,0-:buffers;"
    "scatter/park/slow@0-4:128k-:symmetric,128k-:cma,0-:buffers;"
    "scatter+alltoall/park@5-8:32k-:symmetric,32k-:cma,0-:buffers;"
    "scatter+alltoall/park@9-:16k-:symmetric,16k-:cma,0-:buffers;"
    "scatter+alltoall/park:64k-:symmetric,64k-:cma,0-:buffers;"
    "scatter/spin/slow:0-:buffers;"
    "gather+allgather+alltoall/spin/slow:4k-:symmetric,0-:buffers;"
    "gather+allgather+scatter+alltoall/spin:8k-:symmetric,8k-:cma,0-:buffers;"
    "twoshot_chunk=128k;copy_chunk/spin=64k;copy_chunk/park=256k" PAST;

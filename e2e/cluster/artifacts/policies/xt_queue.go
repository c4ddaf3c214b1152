package networkpolicy

import (
	"encoding/binary"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
)

// failOpen lets packets pass while nothing reads the queue (NFQ_FLAG_BYPASS).
const failOpen = 1

// xtQueue hands packets to a queue by the target NFQUEUE of iptables, in its revision 3, from inside nftables.
// Kernels without CONFIG_NFT_QUEUE mostly have that target, and CONFIG_NFT_COMPAT to call it.
func xtQueue(number uint16, open bool) *expr.Target {
	const queues = 1
	// struct xt_NFQ_info_v3: first queue, how many queues, flags; padded to eight bytes.
	info := binary.NativeEndian.AppendUint16(nil, number)
	info = binary.NativeEndian.AppendUint16(info, queues)
	var flags uint16
	if open {
		flags = failOpen
	}
	info = binary.NativeEndian.AppendUint16(info, flags)
	data := xt.Unknown(append(info, 0, 0))
	return &expr.Target{Name: "NFQUEUE", Rev: 3, Info: &data}
}

package flow

// Protocol is what a parser reads, for the counts.
type Protocol uint8

// The protocols.
const (
	DNS Protocol = iota
	TLS
	QUIC
	NumProtocols
)

var protocolNames = [NumProtocols]string{"dns", "tls", "quic"}

func (p Protocol) String() string {
	if p < NumProtocols {
		return protocolNames[p]
	}
	return "unknown"
}

// Reason is why something was not read, or not wholly.
type Reason uint8

// The reasons.
const (
	ReasonNone      Reason = iota
	ReasonShort            // it ends before its own lengths say
	ReasonCut              // the kernel did not copy all of it
	ReasonGap              // bytes of the stream are missing, so that it is not known where a message begins
	ReasonQuery            // a question, or another message that is no answer
	ReasonPointer          // a name's compression points forwards, or goes on too long
	ReasonLabel            // a name has a label of an unknown kind
	ReasonLongName         // a name has more than 255 bytes
	ReasonRecord           // a DNS record is not as long as its type, or its contents do not fit
	ReasonMany             // more records than are read
	ReasonNoHello          // not the beginning of a ClientHello
	ReasonMalformed        // lengths in a ClientHello contradict each other
	ReasonLong             // a ClientHello of more bytes than are kept
	ReasonPieces           // a ClientHello in more pieces than are read
	ReasonVersion          // a version of QUIC that is neither 1 nor 2
	ReasonDecrypt          // no key of the packet's connection opens it
	ReasonFrame            // a frame that may not be in an Initial packet, or is malformed
	ReasonPushedOut        // newer flows needed the room
	ReasonEnded            // the flow ended first
	NumReasons
)

var reasonNames = [NumReasons]string{
	"none", "short", "cut", "gap", "query", "pointer", "label", "long-name", "record", "many", "no-hello", "malformed", "long", "pieces", "version",
	"decrypt", "frame", "pushed-out", "ended",
}

func (r Reason) String() string {
	if r < NumReasons {
		return reasonNames[r]
	}
	return "unknown"
}

// Counters count what a Reader has read, and by reason what it has not. An answer or hello of which only a part is known counts in both.
type Counters struct {
	Read    [NumProtocols]uint64
	Refused [NumProtocols][NumReasons]uint64
}

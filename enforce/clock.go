package enforce

import (
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// clock keeps control.clock: how the kernel knows the time of the week from its time since boot. That goes on by itself; what must be followed are steps of the
// clock, changes of the time zone, and daylight saving.
type clock struct {
	zone  *time.Location // nil until it is first asked for
	file  zoneFile       // that zone is of
	shift time.Duration  // for tests: how far the host's clock is from what it says
}

// zoneFile tells one state of /etc/localtime from another.
type zoneFile struct {
	target string
	ino    uint64
	time   syscall.Timespec
}

const zonePath = "/etc/localtime"

// weekBegin is from a Monday at 0:00 to the Unix epoch, a Thursday.
const weekBegin = 3 * 24 * time.Hour

// tolerance is how far the clock may be from what the kernel was told: less than a second's share of the precision that is promised, and more than two readings
// of clocks differ by.
const tolerance = 20 * time.Millisecond

// offset is what control.clock should be now.
func (c *clock) offset() (uint64, error) {
	c.follow()
	var boot, real unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot); err != nil {
		return 0, fmt.Errorf("read the time since boot: %w", err)
	}
	if err := unix.ClockGettime(unix.CLOCK_REALTIME, &real); err != nil {
		return 0, fmt.Errorf("read the clock: %w", err)
	}
	now := time.Unix(real.Unix()).Add(c.shift)
	_, east := now.In(c.zone).Zone()
	return uint64(now.UnixNano() + int64(east)*int64(time.Second) + int64(weekBegin) - boot.Nano()), nil
}

// follow reads the time zone again when its file is another one. When TZ says the zone, or there was no file at start, it stays.
func (c *clock) follow() {
	first := c.zone == nil
	if first {
		c.zone = time.Local
	}
	if time.Local.String() != "Local" {
		return
	}
	var f zoneFile
	f.target, _ = os.Readlink(zonePath)
	if st, err := os.Stat(zonePath); err == nil {
		if sys, ok := st.Sys().(*syscall.Stat_t); ok {
			f.ino, f.time = sys.Ino, sys.Mtim
		}
	}
	if f == c.file {
		return
	}
	c.file = f
	if first { // time.Local is of this one
		return
	}
	data, err := os.ReadFile(zonePath)
	if err != nil {
		c.zone = time.UTC // as the C library has it
		return
	}
	if zone, err := time.LoadLocationFromTZData("Local", data); err == nil {
		c.zone = zone
	}
}

// tick tells the kernel the time when it is off by more than tolerance.
func (e *Enforcer) tick() error {
	want, err := e.clock.offset()
	if err != nil {
		return err
	}
	if d := time.Duration(want - e.ctl.Clock); d < tolerance && d > -tolerance {
		return nil
	}
	old := e.ctl
	e.ctl.Clock = want
	if err := e.putControl(); err != nil {
		e.ctl = old
		return err
	}
	return nil
}

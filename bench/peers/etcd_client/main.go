// A closed loop of puts or linearizable gets against etcd, told what to do by lines of JSON on stdin; see ../child.py for the protocol.
//
//	etcd_client ENDPOINT...
package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/status"
)

const (
	// A put that a follower hands to a leader that has just died is lost, and the follower answers "request timed out" after seven seconds:
	// a client that waits for that sends nothing meanwhile. As long as an election takes (election-timeout, by default one second) is
	// enough, and ten times the slowest of 1,024 puts at once on two quiet cores.
	callTimeout = 1 * time.Second
	dialTimeout = 2 * time.Second
	// Notices a member whose machine is gone; one that is killed closes its connections by itself.
	keepAliveTime    = 10 * time.Second
	keepAliveTimeout = 2 * time.Second
	value            = "00000001"
)

type question struct {
	Operation string  `json:"operation"`
	InFlight  int     `json:"in_flight"`
	DurationS float64 `json:"duration_s"`
	Keys      int     `json:"keys"`
}

type answer struct {
	OverNs       int64          `json:"over_ns"`
	Errors       map[string]int `json:"errors"`
	TookNs       string         `json:"took_ns"`
	EndedNs      string         `json:"ended_ns"`
	FailedNs     string         `json:"failed_ns"`
	Acknowledged []int          `json:"acknowledged"`
	Unknown      []int          `json:"unknown"`
	FoldingCpuS  float64        `json:"folding_cpu_s"`
}

// One caller's own records: nothing is shared while calls run.
type caller struct {
	tookNs  []int64
	endedNs []int64 // since the load began
	missNs  []int64 // when calls failed, since the load began
	errors  map[string]int
	told    []int32 // the key of each answered call
	failed  []int32 // the key of each failed call
}

func run(client *clientv3.Client, asked question) answer {
	keys := make([]string, asked.Keys)
	for number := range keys {
		keys[number] = fmt.Sprintf("counter-%d", number)
	}
	callers := make([]caller, asked.InFlight)
	began := time.Now()
	deadline := began.Add(time.Duration(asked.DurationS * float64(time.Second)))
	var group sync.WaitGroup
	for first := range callers {
		group.Add(1)
		go func(mine *caller, number int) {
			defer group.Done()
			mine.errors = map[string]int{}
			for {
				start := time.Now()
				if !start.Before(deadline) {
					return
				}
				place := number % len(keys)
				err := call(client, asked.Operation, keys[place])
				end := time.Now()
				if err == nil {
					mine.tookNs = append(mine.tookNs, int64(end.Sub(start)))
					mine.endedNs = append(mine.endedNs, int64(end.Sub(began)))
					mine.told = append(mine.told, int32(place))
				} else {
					mine.errors[name(err)]++
					mine.missNs = append(mine.missNs, int64(end.Sub(began)))
					mine.failed = append(mine.failed, int32(place))
				}
				number += asked.InFlight
			}
		}(&callers[first], first)
	}
	group.Wait()
	return collected(callers, int64(deadline.Sub(began)), len(keys))
}

func call(client *clientv3.Client, operation string, key string) error {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	var err error
	if operation == "write" {
		_, err = client.Put(ctx, key, value)
	} else {
		_, err = client.Get(ctx, key)
	}
	return err
}

func name(err error) string {
	if known, ok := status.FromError(err); ok {
		return known.Code().String()
	}
	// etcd's own errors are named by their text.
	return err.Error()
}

// What all callers saw, and when their time was over. What it takes to collect that is told too: it is not the load's.
func collected(callers []caller, overNs int64, keys int) answer {
	beganS := cpuS()
	result := answer{OverNs: overNs, Errors: map[string]int{}, Acknowledged: make([]int, keys), Unknown: make([]int, keys)}
	var took, ended, missed []byte
	for _, each := range callers {
		for text, count := range each.errors {
			result.Errors[text] += count
		}
		for _, place := range each.told {
			result.Acknowledged[place]++
		}
		for _, place := range each.failed {
			result.Unknown[place]++
		}
		took = appended(took, each.tookNs)
		ended = appended(ended, each.endedNs)
		missed = appended(missed, each.missNs)
	}
	result.TookNs = base64.StdEncoding.EncodeToString(took)
	result.EndedNs = base64.StdEncoding.EncodeToString(ended)
	result.FailedNs = base64.StdEncoding.EncodeToString(missed)
	result.FoldingCpuS = cpuS() - beganS
	return result
}

// CPU seconds of this process so far; 0 if the kernel does not tell.
func cpuS() float64 {
	var usage syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &usage) != nil {
		return 0
	}
	return float64(usage.Utime.Nano()+usage.Stime.Nano()) / 1e9
}

func appended(text []byte, values []int64) []byte {
	for _, value := range values {
		text = binary.LittleEndian.AppendUint64(text, uint64(value))
	}
	return text
}

func main() {
	client, err := clientv3.New(clientv3.Config{
		Endpoints:            os.Args[1:],
		DialTimeout:          dialTimeout,
		DialKeepAliveTime:    keepAliveTime,
		DialKeepAliveTimeout: keepAliveTimeout,
		PermitWithoutStream:  true,
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer client.Close()
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(map[string]bool{"ready": true}); err != nil {
		os.Exit(1)
	}
	questions := bufio.NewScanner(os.Stdin)
	for questions.Scan() {
		var asked question
		if err := json.Unmarshal(questions.Bytes(), &asked); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		if err := out.Encode(run(client, asked)); err != nil {
			os.Exit(1)
		}
	}
}

// Package hpa runs Kubernetes' own horizontal pod autoscaler over made-up afternoons and writes down what it did.
//
// Nothing of the controller is transcribed: reconcile is the unexported method of k8s.io/kubernetes, linked by name, and it
// runs with a fake API server, fake metrics and a fake clock (testing/synctest). vectors_test.go makes the afternoons.
package hpa

import (
	"context"
	"errors"
	"strings"
	"time"
	_ "unsafe" // go:linkname

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	scalefake "k8s.io/client-go/scale/fake"
	core "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/controller/podautoscaler"
	"k8s.io/kubernetes/pkg/controller/podautoscaler/metrics"
)

//go:linkname reconcile k8s.io/kubernetes/pkg/controller/podautoscaler.(*HorizontalController).reconcileAutoscaler
func reconcile(*podautoscaler.HorizontalController, context.Context, *autoscalingv2.HorizontalPodAutoscaler, string) error

const (
	namespace = "default"
	labelled  = "name=engine"
)

// world is the cluster the controller sees: one Deployment's scale, its pods and what can be measured of them.
type world struct {
	spec, status int32
	values       metrics.PodMetricsInfo // milli-units by pod; a pod that is not there has no metric
	total        int64                  // milli-units
	blind        bool
	pods         cache.Indexer
	controller   *podautoscaler.HorizontalController
}

func (w *world) GetResourceMetric(context.Context, v1.ResourceName, string, labels.Selector, string) (metrics.PodMetricsInfo, time.Time, error) {
	return nil, time.Time{}, errors.New("no resource metrics here")
}

func (w *world) GetRawMetric(string, string, labels.Selector, labels.Selector) (metrics.PodMetricsInfo, time.Time, error) {
	if w.blind {
		return nil, time.Time{}, errors.New("the metrics API is away")
	}
	copied := metrics.PodMetricsInfo{}
	for name, metric := range w.values {
		copied[name] = metric
	}
	return copied, time.Now(), nil
}

func (w *world) GetObjectMetric(string, string, *autoscalingv2.CrossVersionObjectReference, labels.Selector) (int64, time.Time, error) {
	return 0, time.Time{}, errors.New("no object metrics here")
}

func (w *world) GetExternalMetric(string, string, labels.Selector) ([]int64, time.Time, error) {
	if w.blind {
		return nil, time.Time{}, errors.New("the metrics API is away")
	}
	return []int64{w.total}, time.Now(), nil
}

// newWorld builds the controller around a world, with the flags of kube-controller-manager that matter.
func newWorld(ctx context.Context, tolerance float64, downWindow time.Duration) *world {
	w := &world{}
	client := fake.NewSimpleClientset()
	factory := informers.NewSharedInformerFactory(client, 0)
	w.pods = factory.Core().V1().Pods().Informer().GetIndexer()
	scales := &scalefake.FakeScaleClient{}
	scales.AddReactor("get", "deployments", func(core.Action) (bool, runtime.Object, error) {
		return true, &autoscalingv1.Scale{
			ObjectMeta: metav1.ObjectMeta{Name: "engine", Namespace: namespace},
			Spec:       autoscalingv1.ScaleSpec{Replicas: w.spec},
			Status:     autoscalingv1.ScaleStatus{Replicas: w.status, Selector: labelled},
		}, nil
	})
	scales.AddReactor("update", "deployments", func(action core.Action) (bool, runtime.Object, error) {
		written := action.(core.UpdateAction).GetObject().(*autoscalingv1.Scale)
		w.spec = written.Spec.Replicas
		return true, written, nil
	})
	mapper := meta.NewDefaultRESTMapper([]schema.GroupVersion{{Group: "apps", Version: "v1"}})
	mapper.Add(schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Deployment"}, meta.RESTScopeNamespace)
	client.PrependReactor("update", "horizontalpodautoscalers", func(action core.Action) (bool, runtime.Object, error) {
		return true, action.(core.UpdateAction).GetObject(), nil // its status, which nobody reads
	})
	w.controller = podautoscaler.NewHorizontalController(
		ctx, client.CoreV1(), scales, client.AutoscalingV2(), mapper, w,
		factory.Autoscaling().V2().HorizontalPodAutoscalers(), factory.Core().V1().Pods(),
		15*time.Second, downWindow, tolerance, 5*time.Minute, 30*time.Second,
	)
	return w
}

// look reconciles once and says how many replicas the Deployment has been given. No metric is an error that writes nothing; any
// other error would be one of this program.
func (w *world) look(ctx context.Context, hpa *autoscalingv2.HorizontalPodAutoscaler) int32 {
	err := reconcile(w.controller, ctx, hpa, namespace+"/"+hpa.Name)
	if err != nil && !strings.HasPrefix(err.Error(), "failed to compute desired number of replicas") {
		panic(err)
	}
	return w.spec
}

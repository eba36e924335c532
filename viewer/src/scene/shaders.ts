/** GLSL for atoms (spheres found by ray casting on quads), sticks and arrows (instanced meshes). */

/** Light from the upper left behind the viewer, a soft sky, and fog towards the background. */
const LIGHT = /* glsl */ `
uniform vec3 background;
uniform vec2 fog; // distance where it begins, 1 / length; 0 = none
uniform float gloss;

vec3 shade(vec3 colour, vec3 normal, vec3 place) {
  vec3 eye = normalize(-place);
  vec3 sun = normalize(vec3(-0.45, 0.75, 0.9));
  float diffuse = max(dot(normal, sun), 0.0);
  float sky = 0.5 + 0.5 * normal.y;
  vec3 half_way = normalize(sun + eye);
  float spark = pow(max(dot(normal, half_way), 0.0), 48.0) * gloss;
  vec3 lit = colour * (0.42 + 0.16 * sky + 0.52 * diffuse) + vec3(spark);
  // The rim falls off, so that overlapping balls keep apart.
  lit *= 0.72 + 0.28 * smoothstep(0.0, 0.55, dot(normal, eye));
  float haze = clamp((-place.z - fog.x) * fog.y, 0.0, 0.75);
  return mix(lit, background, haze);
}
`

export const SPHERE_VERTEX = /* glsl */ `
uniform mat4 modelViewMatrix;
uniform mat4 projectionMatrix;
in vec3 position; // corner of the quad, -1..1
in vec4 ball;     // centre, radius
in vec4 paint;    // colour, mark
out vec3 vCentre;
out vec3 vPlace;
out float vRadius;
flat out vec4 vPaint;

void main() {
  vec4 centre = modelViewMatrix * vec4(ball.xyz, 1.0);
  vCentre = centre.xyz;
  vRadius = ball.w;
  vPaint = paint;
  // The quad faces the eye and covers the silhouette, also where perspective stretches it.
  float d = length(centre.xyz);
  float grow = ball.w * d / sqrt(max(d * d - ball.w * ball.w, 1e-4)) * 1.04;
  vec3 forward = centre.xyz / max(d, 1e-4);
  vec3 right = normalize(cross(forward, vec3(0.0, 1.0, 0.0)));
  vec3 up = cross(right, forward);
  vPlace = centre.xyz + grow * (position.x * right + position.y * up);
  gl_Position = projectionMatrix * vec4(vPlace, 1.0);
}
`

export const SPHERE_FRAGMENT = /* glsl */ `
precision highp float;
uniform mat4 projectionMatrix;
uniform vec3 accent;
in vec3 vCentre;
in vec3 vPlace;
in float vRadius;
flat in vec4 vPaint;
out vec4 fragment;
${LIGHT}
void main() {
  vec3 ray = normalize(vPlace);
  float along = dot(ray, vCentre);
  vec3 nearest = vCentre - along * ray;
  float gap = length(nearest);
  float inside2 = vRadius * vRadius - gap * gap;
  float edge = max(fwidth(gap), 1e-5);
  float cover = clamp((vRadius - gap) / edge + 0.5, 0.0, 1.0);
#ifdef SMOOTH_EDGES
  if (cover <= 0.0) discard;
#else
  if (cover < 0.5) discard;
  cover = 1.0;
#endif
  float t = along - sqrt(max(inside2, 0.0));
  vec3 place = t * ray;
  vec3 normal = normalize(place - vCentre);
  vec3 colour = shade(vPaint.rgb, normal, place);
  if (vPaint.a > 0.5) {
    float facing = dot(normal, -ray);
    float ring = 1.0 - smoothstep(0.5, 0.62, facing);
    colour = mix(colour, accent, ring * (vPaint.a > 1.5 ? 1.0 : 0.55));
  }
  vec4 clip = projectionMatrix * vec4(place, 1.0);
  gl_FragDepth = 0.5 + 0.5 * clip.z / clip.w;
  fragment = vec4(colour, cover);
}
`

export const STICK_VERTEX = /* glsl */ `
uniform mat4 modelViewMatrix;
uniform mat4 projectionMatrix;
in vec3 position; // around the axis, y from 0 to 1
in vec4 foot;     // start, radius
in vec3 tip;      // end
in vec4 paint;
out vec3 vNormal;
out vec3 vPlace;
flat out vec4 vPaint;

void main() {
  vec3 a = (modelViewMatrix * vec4(foot.xyz, 1.0)).xyz;
  vec3 b = (modelViewMatrix * vec4(tip, 1.0)).xyz;
  vec3 axis = normalize(b - a + vec3(0.0, 0.0, 1e-9));
  vec3 side = normalize(cross(axis, abs(axis.z) < 0.9 ? vec3(0.0, 0.0, 1.0) : vec3(1.0, 0.0, 0.0)));
  vec3 other = cross(axis, side);
  vNormal = position.x * side + position.z * other;
  vPlace = mix(a, b, position.y) + foot.w * vNormal;
  vPaint = paint;
  gl_Position = projectionMatrix * vec4(vPlace, 1.0);
}
`

export const ARROW_VERTEX = /* glsl */ `
uniform mat4 modelViewMatrix;
uniform mat4 projectionMatrix;
in vec3 position; // x, z around the axis; y: 0 tail, 1 neck, 2 tip
in vec4 foot;     // start, radius
in vec3 tip;
in vec4 paint;
out vec3 vNormal;
out vec3 vPlace;
flat out vec4 vPaint;

void main() {
  vec3 a = (modelViewMatrix * vec4(foot.xyz, 1.0)).xyz;
  vec3 b = (modelViewMatrix * vec4(tip, 1.0)).xyz;
  float size = length(b - a);
  vec3 axis = (b - a) / max(size, 1e-6);
  vec3 side = normalize(cross(axis, abs(axis.z) < 0.9 ? vec3(0.0, 0.0, 1.0) : vec3(1.0, 0.0, 0.0)));
  vec3 other = cross(axis, side);
  float head = min(0.45 * size, 7.0 * foot.w);
  float along = position.y < 0.5 ? 0.0 : position.y < 1.5 ? size - head : size;
  vec3 out_ = position.x * side + position.z * other;
  vNormal = normalize(out_ + (position.y > 0.9 && length(position.xz) > 1.2 ? 0.5 * axis : vec3(0.0)) + 1e-6 * axis);
  vPlace = a + axis * along + foot.w * out_;
  vPaint = paint;
  gl_Position = projectionMatrix * vec4(vPlace, 1.0);
}
`

export const MESH_FRAGMENT = /* glsl */ `
precision highp float;
uniform vec3 accent;
in vec3 vNormal;
in vec3 vPlace;
flat in vec4 vPaint;
out vec4 fragment;
${LIGHT}
void main() {
  vec3 normal = normalize(vNormal);
  vec3 colour = shade(vPaint.rgb, normal, vPlace);
  if (vPaint.a > 0.5) colour = mix(colour, accent, 0.7);
  fragment = vec4(colour, 1.0);
}
`

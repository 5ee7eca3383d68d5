/** The base of all errors that are thrown at a user; each says what was got and what was expected. */
export class HmarlError extends Error {
  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
  }
}
/** A wrong argument; nothing has been changed. */
export class UsageError extends HmarlError {}
/** A bundle that is damaged or incomplete. */
export class BundleError extends HmarlError {}
/** An observation or action mask of wrong length or content; the step is not used up. */
export class ObservationError extends HmarlError {}
/** The policy computed no action that it has, or an illegal one; the step is not used up, the state has not changed. */
export class InferenceError extends HmarlError {}
/** The policy computed NaN or infinity; the same holds. */
export class NonFiniteError extends InferenceError {}
/** A step that is older than the last one, or that repeats it with other content. */
export class StepOrderError extends HmarlError {}
/** No fresh action in time, and the fallback allows none instead: stop the robot. */
export class StaleActionError extends HmarlError {}
/** The agent refuses the request, is not there, or another one answers. */
export class AgentError extends HmarlError {}
/** The agent serves another bundle than the one that this client is for. */
export class OtherBundleError extends AgentError {}
/** Used twice at the same time, or after `close`. */
export class MisuseError extends HmarlError {}
